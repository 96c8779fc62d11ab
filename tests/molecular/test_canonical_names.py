"""One naming of equivalent atoms: found from any of the equal ones, and what flows that know it alone do with it."""

import math

import pytest
import torch

from molecular import InternalProse, Peptide
from molecular.energy.reduced import ReducedEnergy
from molecular.molecule.canonical_names import CanonicalEnergy, CanonicalNames, equivalent_groups, with_canonical_names
from molecular.molecule.equivalent_atoms import SymmetryTable
from molecular.molecule.geometry import dihedrals
from molecular.molecule.symmetry import half_turns, methyl_rotations
from molecular.molecule.torsions import heavy_torsions, periods
from molecular.sampling import sample, smc
from molecular.sampling.sequential import move_at_target
from molecular.training.fit_corpus import LikelihoodPerDimension
from tests.molecular.peptide_topologies import draw_positions, make_topology

# Every residue, first and last in the chain among them.
SEQUENCES = ("RN", "KFG", "YE", "VDT", "LMI", "QHW", "GCSP", "PA")
SMALL = {"channels": 8, "num_blocks": 1, "layers_per_block": 1, "head_dim": 4, "condition_channels": 8}


def near(peptide, count, noise=0.01, seed=0):
    """Conformations near that of a peptide."""
    x = torch.from_numpy(peptide.positions)
    return x + noise * torch.randn(count, *x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


@pytest.fixture(scope="module")
def flow(gg):
    """An untrained flow, fitted to conformations near one, that knows canonical names alone."""
    torch.manual_seed(0)
    flow = InternalProse(**SMALL, canonical_names=True)
    x = with_canonical_names(near(gg, 400), gg).float()
    context = flow.context(gg).expand(len(x), -1, -1)
    return flow.fitted([{"inputs": x, "context": context}]).eval()


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_every_equal_naming_becomes_the_same_one(sequence):
    topology = make_topology(sequence)
    x = draw_positions(topology, 30)
    names, table = CanonicalNames([topology]), SymmetryTable.of([topology])
    own = torch.zeros(len(x), dtype=torch.int64)
    named = names.turn(x, own)
    assert torch.equal(names.turn(named, own), named)
    for seed in range(5):
        turned = table.turn(x, own, torch.Generator().manual_seed(seed))
        assert torch.equal(names.turn(turned, own), named)


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_the_first_atom_of_each_group_is_nearest_to_its_centre(sequence):
    peptide = Peptide(sequence)
    groups = equivalent_groups(peptide)
    turns = half_turns(peptide.topology)
    assert len(groups) == len(turns) + len(methyl_rotations(peptide.topology))
    x = with_canonical_names(near(peptide, 20), peptide)
    for group in groups:
        # About the bond that the group turns on, from an atom which stays.
        assert not torch.isin(group.torsions[0, :3], group.rows[0]).any()
        away = torch.cos(dihedrals(x, group.torsions) - group.centre)
        assert (away[:, :1] >= away[:, 1:]).all()
        # A methyl is at most some 60 degrees from its centre, a turn some 90.
        assert (away[:, 0] > math.cos(math.pi / len(group.rows)) - 0.35).all()


def test_a_mixed_batch_is_named_as_each_molecule_alone():
    peptides = [Peptide(sequence) for sequence in ("GG", "RN", "KF")]
    longest = max(peptide.num_atoms for peptide in peptides)
    table = SymmetryTable.of(peptides)
    rows = [torch.nn.functional.pad(near(p, 6), (0, 0, 0, longest - p.num_atoms)) for p in peptides]
    molecules = torch.arange(3).repeat_interleave(6)
    x = table.turn(torch.cat(rows), molecules, torch.Generator().manual_seed(0))
    order = torch.randperm(18, generator=torch.Generator().manual_seed(1))
    together = CanonicalNames(peptides).turn(x[order], molecules[order])[order.argsort()]
    for part, given, peptide in zip(together.split(6), x.split(6), peptides, strict=True):
        assert torch.equal(part[:, : peptide.num_atoms], with_canonical_names(given[:, : peptide.num_atoms], peptide))


def test_the_energy_is_that_of_one_naming():
    peptide = Peptide("KV")
    x = with_canonical_names(near(peptide, 5), peptide)
    plain = ReducedEnergy(peptide, dtype=torch.float64)
    energy = CanonicalEnergy(plain, peptide)
    assert torch.equal(energy(x), plain(x))
    rows = methyl_rotations(peptide.topology)[0]
    turned = x.clone()
    turned[2, rows[0]] = x[2, rows[1]]
    torch.testing.assert_close(plain(turned), plain(x))
    assert energy(turned).isinf().tolist() == [False, False, True, False, False]
    turned.requires_grad_()
    (gradient,) = torch.autograd.grad(-energy(turned).sum(), turned)
    assert gradient.isfinite().all() and (gradient[2] == 0).all()


def test_samples_of_another_naming_have_no_weight(flow, gg):
    drawn = sample(flow.given(gg), gg, 300, seed=0)
    canonical = (with_canonical_names(drawn.x, gg) == drawn.x).flatten(1).all(1)
    assert torch.equal(drawn.log_target.isfinite(), canonical)
    assert 50 < canonical.sum() < 300  # untrained, the flow has each number alone
    known = drawn.log_target[canonical]
    # OpenMM rounds to single precision, in an order that depends on what it was given before.
    again = -ReducedEnergy(gg)(drawn.x[canonical])
    torch.testing.assert_close(known, again, check_dtype=False, rtol=1e-5, atol=1e-3)


def test_particles_keep_their_names(flow, gg):
    moved = smc(flow.given(gg), gg, 40, final_moves=5, seed=0)
    alive = moved.log_weights.isfinite()
    assert alive.any()
    assert torch.equal(with_canonical_names(moved.x[alive], gg), moved.x[alive])
    chains = move_at_target(flow.given(gg), gg, moved.x[alive], 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(with_canonical_names(chains.x, gg), chains.x)


def test_training_and_improvement_name_atoms_as_the_flow_knows_them(flow, gg):
    x = SymmetryTable.of([gg]).turn(near(gg, 8).float(), torch.zeros(8).long(), torch.Generator().manual_seed(0))
    batch = {"inputs": x, "context": flow.context(gg).expand(8, -1, -1), "system": torch.zeros(8, dtype=torch.int64)}
    named = with_canonical_names(x, gg)
    objective = LikelihoodPerDimension(flow.symmetries([gg]))
    assert torch.equal(objective.augmented(flow, batch, torch.Generator())["inputs"], named)
    assert torch.equal(flow.augmentation(gg)(x, torch.Generator()), named)


def test_the_setting_is_kept_with_the_weights_and_old_ones_are_without(flow, tmp_path):
    flow.save_pretrained(tmp_path)
    assert InternalProse.from_pretrained(tmp_path).canonical_names
    assert not InternalProse(**SMALL).canonical_names


def test_torsions_times_their_periods_hardly_know_the_names():
    peptide = Peptide("FD")
    topology = peptide.topology
    heavy = heavy_torsions(topology)
    twice = [[topology.atom_names[atom] for atom in row] for row in heavy[periods(topology, heavy) == 2].tolist()]
    ends = {frozenset((names[0], names[-1])) for names in twice}
    assert ends == {frozenset(("CA", "CD1")), frozenset(("CA", "OD1")), frozenset(("N", "O"))}
    x = near(peptide, 50, noise=0.003)
    turned = SymmetryTable.of([peptide]).turn(x, torch.zeros(50).long(), torch.Generator().manual_seed(0))
    before, after = dihedrals(x, heavy), dihedrals(turned, heavy)
    difference = torch.cos((after - before) * periods(topology, heavy))
    assert torch.cos(after - before).min() < -0.9 and difference.min() > 0.8
