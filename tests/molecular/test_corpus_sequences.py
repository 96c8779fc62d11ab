"""No sequence on which transferable flows are judged is in a list to train on."""

import json
import runpy
from pathlib import Path

import pytest

import molecular
from molecular.data.corpus import read_sequences

RECIPES = Path(molecular.__file__).parent / "recipes"

# The validation and test sequences of 2, 4 and 8 residues of the transferable samplers' benchmark (arXiv 2508.18175).
VALIDATION = """
AL EC FT GQ HV ND PF RS WI WY
CAVQ CVNR EDWY GNFL ISDT KHAP KHGM LFTE PMWS YRIQ
AHKILWHG AMYNLMIR DQNVCCME IVTVAYFP PYTQVRPC QDFKRNIR QTHSSDEF SMFNWLKY TGEAGKSH WCEPGLDW
""".split()  # noqa: SIM905 - as published
TEST = """
AA CE CL DG DI FK HL HM IK IM KG LE MQ NA NC PG PY QR RL RT SS TD VF VS WA WH WQ WS YC YQ
ARIP CCVH CIPQ DEMT DMTL EHQW FESD FYYY GCDE GDTI GGRS HEAV HQVS HYGW ITYL
KKAP KLLR KRWN NCFG NEVI PQIF QAKR QWNL RLMM SHKS SVND TAPF TMWC VPFY WNMA
ANKSMIEA CGSWHKQR CLCCGQWN DDRDTEQT DGVAHALS EKYYWMQT FWRVDHDM GNDLVTVI HWHSLICK IDHRQLKW
IFGWVYTG ISKCKNGE KRRGFFLE MAPQTIAT MRDPVLFA MWNSTEMI MYGRNCYM NHQYGSDP NKEKFFQH NPCLCYML
PGESTAES PLFHVMYV PPWRECNN PYIRNCVE SPHKMRLC SQQKVAFE VWIPVIDT WDLIQFRQ WTYAFAHS YFPHAGYT
""".split()  # noqa: SIM905 - as published
SYSTEMS = ["AAA", "AAAAAA", "GYDPETGTWG"]
"""Judged one by one, uncapped."""

# Every list of sequences in the repository but that of the benchmark itself, which is JSON.
LISTS = sorted(RECIPES.glob("*.txt"))


def test_the_benchmark_has_as_many_sequences_as_published():
    assert [sum(len(name) == length for name in VALIDATION) for length in (2, 4, 8)] == [10, 10, 10]
    assert [sum(len(name) == length for name in TEST) for length in (2, 4, 8)] == [30, 30, 30]
    assert len({*VALIDATION, *TEST}) == 120
    assert json.loads((RECIPES / "public_sequences.json").read_text()) == {"validation": VALIDATION, "test": TEST}


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_no_list_has_a_sequence_of_the_benchmark(path):
    judged = {*VALIDATION, *TEST, *SYSTEMS}
    assert not judged & set(read_sequences(path))


def test_every_allowed_dipeptide_is_in_the_corpus():
    assert len(read_sequences(RECIPES / "corpus_sequences_2.txt")) == 400 - 30 - 10


@pytest.mark.parametrize("length", [2, 3, 4])
def test_any_prefix_has_all_residues_alike(length):
    chosen = read_sequences(RECIPES / f"corpus_sequences_{length}.txt")
    assert {len(name) for name in chosen} == {length}
    for number in (40, 100, 300):
        for place in range(length):
            counts = [sum(name[place] == residue for name in chosen[:number]) for residue in "ACDEFGHIKLMNPQRSTVWY"]
            # What is left out shifts a list against its blocks of twenty.
            assert max(counts) - min(counts) <= (2 if length > 2 else 2 + number // 40)


def test_the_lists_are_made_from_their_seed():
    made = runpy.run_path(str(RECIPES / "corpus_sequences.py"))
    for length, number in made["NUM_SEQUENCES"].items():
        assert read_sequences(RECIPES / f"corpus_sequences_{length}.txt") == made["sequences"](length, number)
