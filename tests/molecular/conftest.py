"""Peptides that several tests begin with, imported where they are asked for: `make gpu` does without OpenMM."""

import pytest


@pytest.fixture(scope="module")
def alanine():
    from molecular import Peptide

    return Peptide("Ace-A-Nme")


@pytest.fixture(scope="module")
def gg():
    from molecular import Peptide

    return Peptide("GG")
