"""The flows that ship with the package do what the README says of them."""

import re

import numpy as np
import pytest
import torch

from molecular.analysis.validity import intact_bonds, right_chirality
from molecular.molecule.canonical_names import with_canonical_names
from molecular.molecule.geometry import dihedrals
from molecular.molecule.peptide import Peptide
from molecular.molecule.torsions import phi_psi_torsions
from molecular.sampling import load_flow, sample
from molecular.sampling.shipped import SHIPPED, reference_positions
from molecular.sampling.summary import summarize, unusable, verdict
from nflib.montecarlo import WeightedSamples

SEQUENCE = "Ace-A-Nme"


@pytest.fixture(scope="module")
def peptide() -> Peptide:
    return Peptide(SEQUENCE)


def test_weights_reach_the_force_field(peptide):
    flow = load_flow(Peptide(SEQUENCE))
    samples = sample(flow, peptide, 1000, seed=1)
    assert samples.effective_sample_size_fraction > 0.3
    assert samples.num_rejected == 0
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(samples.x), samples.log_prob, atol=2e-3, rtol=0)


def test_reference_is_an_equilibrium_ensemble(peptide):
    positions = reference_positions(Peptide(SEQUENCE))
    assert positions is not None
    phi, psi = phi_psi_torsions(peptide.topology)
    angles = dihedrals(positions.double(), torch.as_tensor(np.concatenate([phi, psi])))
    assert 0.3 < ((angles[:, 1] > np.radians(-120)) & (angles[:, 1] < np.radians(50))).double().mean() < 0.6
    assert 0.005 < ((angles[:, 0] > 0) & (angles[:, 0] < np.radians(150))).double().mean() < 0.05


def test_it_is_small():
    assert sum(path.stat().st_size for path in (SHIPPED / SEQUENCE).iterdir()) < 16e6


# Half of the lowest of five seeds in benchmarks/RESULTS.md, or less: a thousand draws tell no more.
@pytest.mark.parametrize(("sequence", "least"), [("AAA", 0.15), ("Ace-AAA-Nme", 0.03), ("AAAAAA", 0.05)])
def test_longer_peptides_of_a_flow_each(sequence, least):
    peptide, flow = Peptide(sequence), load_flow(Peptide(sequence))
    samples = sample(flow, peptide, 500, batch_size=250, seed=1)
    assert samples.effective_sample_size_fraction > least and samples.num_rejected <= 5
    assert right_chirality(samples.x, peptide).float().mean() > 0.99
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(samples.x[:100]), samples.log_prob[:100], atol=5e-3, rtol=0)
    reference = reference_positions(peptide)
    assert reference is not None and reference.shape == (2000, peptide.num_atoms, 3)
    assert sum(path.stat().st_size for path in (SHIPPED / sequence).iterdir()) < 6e6


@pytest.mark.slow
def test_effective_sample_size_of_ten_thousand(peptide):
    samples = sample(load_flow(Peptide(SEQUENCE)), peptide, 10_000, seed=0)
    assert samples.effective_sample_size_fraction >= 0.5
    assert samples.truncate(0.002).effective_sample_size_fraction >= 0.65


@pytest.mark.parametrize("sequence", ["KG", "VF", "GGRS"])
def test_peptides_that_were_not_trained_on(sequence):
    """All are among the public test sequences."""
    peptide, flow = Peptide(sequence), load_flow(Peptide(sequence))
    samples = sample(flow, peptide, 200, seed=1)
    # None but those whose equivalent atoms have other names than the flow was taught.
    other_names = (with_canonical_names(samples.x, peptide) != samples.x).flatten(1).any(1)
    assert samples.num_rejected == other_names.sum() < 20
    assert right_chirality(samples.x, peptide).float().mean() > 0.9
    assert intact_bonds(samples.x, peptide.topology).float().mean() > 0.85
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(samples.x), samples.log_prob, atol=5e-3, rtol=1e-4)


def test_the_flows_of_all_peptides_fit_into_a_repository():
    assert sum(path.stat().st_size for path in SHIPPED.glob("peptides*/*")) < 40e6


def test_equal_weights_can_be_used(peptide):
    """Their Pareto k is no number, which was taken for a tail too heavy."""
    equal = WeightedSamples(torch.zeros(200, 1), torch.zeros(200, dtype=torch.float64))
    summary = equal.summary()
    assert summary["pareto_k"] is None and unusable(summary) is None and verdict(summary).startswith("The weights can")
    heavy = WeightedSamples(torch.zeros(20_000, 1), -0.8 * torch.rand(20_000, dtype=torch.float64).log())
    assert heavy.pareto_k > 0.7 and unusable(heavy.summary()) == "Pareto k is above 0.7"


def test_few_good_draws_ask_for_more_of_them(peptide):
    samples = sample(load_flow(peptide), peptide, 60, seed=0)
    summary = summarize(samples) | {"molecule": peptide.name, "temperature_K": peptide.temperature}
    assert summary["effective_num_ancestors"] < 50 and summary["pareto_k"] < 0.7
    found = re.fullmatch(r"The draws are too few for averages with errors .*: draw (\d+) or more\.", verdict(summary))
    assert found and 60 < int(found[1]) < 300
