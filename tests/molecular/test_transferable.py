"""The transferable flow on internal coordinates: exact densities of any peptide, alone or in padded batches."""

import math

import pytest
import torch

from molecular import InternalProse, Peptide
from molecular.coordinates.internal import InternalCoordinates
from molecular.coordinates.local_frames import LocalFrames
from molecular.coordinates.spherical import Spherical
from molecular.flows.conditioning import SiteEmbedding
from molecular.molecule.internal_context import ORDERINGS, ROWS_BEFORE_TOKENS, Column, internal_context
from molecular.molecule.kinds import KINDS, ROOT
from molecular.sampling import load_flow, sample
from tests.molecular.peptide_topologies import LETTERS, atoms_of, draw_positions, make_topology, padded
from tests.molecular.three_peptides import (
    BATCH,
    CONTEXTS,
    POSITIONS,
    SEQUENCES,
    TOPOLOGIES,
    make_flow,
)


@pytest.fixture(scope="module", params=["spline", "affine"])
def flow(request):
    return make_flow(conditional=request.param).double()


def test_log_prob_is_the_change_of_variables_by_a_dense_jacobian(flow):
    """In the coordinates that rigid motion leaves: six of the first three atoms' are held fixed.

    The density is with respect to those of `LocalFrames`, whose first token is (r01, x2, rho2).
    """
    topology, context, x = TOPOLOGIES[0], CONTEXTS[0][None], POSITIONS[0]
    frames = LocalFrames(bonds(topology), x.shape[1], elements(topology), root=atom(topology, 0, "CA"))
    tokens, _ = frames(x)

    def noise(tokens):
        return flow.transform_to_noise(frames.inverse(tokens)[0], context)

    jacobian = torch.autograd.functional.jacobian(noise, tokens).reshape(tokens.numel(), tokens.numel())
    z = noise(tokens)
    r01, _, rho2 = tokens[0, 0]
    expected = -0.5 * (z.square() + math.log(2 * math.pi)).sum() + torch.linalg.slogdet(jacobian).logabsdet
    expected = expected - 2 * r01.log() - rho2.log()
    torch.testing.assert_close(flow.log_prob(x, context)[0], expected, atol=1e-7, rtol=0)


@torch.no_grad()
def test_rigid_motion_changes_nothing(flow):
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    turn = turn * torch.det(turn)
    x = padded(POSITIONS)
    moved = x @ turn.T + torch.tensor([0.3, -2.0, 0.7])
    torch.testing.assert_close(flow.log_prob(moved, BATCH), flow.log_prob(x, BATCH), atol=1e-8, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("conditional", ["quadratic", "binned", "mixture"])
def test_other_conditionals_have_the_density_of_their_samples(conditional):
    flow = make_flow(conditional=conditional).double()
    x, log_prob = flow.sample_and_log_prob(20, CONTEXTS[0][None], seed=0)
    torch.testing.assert_close(flow.log_prob(x[0], CONTEXTS[0].expand(20, -1, -1)), log_prob[0], atol=1e-7, rtol=0)


@torch.no_grad()
def test_a_mirror_image_has_another_density(flow):
    x = padded(POSITIONS)
    assert (flow.log_prob(-x, BATCH) - flow.log_prob(x, BATCH)).abs().min() > 1e-3


@torch.no_grad()
def test_padding_carries_no_density_and_the_order_of_a_batch_does_not_matter(flow):
    x = padded(POSITIONS)
    log_prob = flow.log_prob(x, BATCH)
    alone = [flow.log_prob(y, context[None]) for y, context in zip(POSITIONS, CONTEXTS, strict=True)]
    torch.testing.assert_close(log_prob, torch.cat(alone), atol=1e-9, rtol=0)
    torch.testing.assert_close(flow.log_prob(x.flip(0), BATCH.flip(0)).flip(0), log_prob, atol=1e-9, rtol=0)
    single = make_flow().log_prob(x.float(), BATCH)
    alone = [make_flow().log_prob(y.float(), context[None]) for y, context in zip(POSITIONS, CONTEXTS, strict=True)]
    torch.testing.assert_close(single, torch.cat(alone), atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_samples_of_a_padded_batch_have_the_density_that_comes_with_them(flow):
    samples, log_prob = flow.sample_and_log_prob(3, BATCH, seed=0)
    assert samples.shape == (3, 3, BATCH.shape[1], 3)
    assert (samples[0, :, len(CONTEXTS[0]) :] == 0).all()
    for molecule, context in enumerate(CONTEXTS):
        own = samples[molecule, :, : len(context)]
        alone = flow.log_prob(own, context[None].expand(3, -1, -1))
        torch.testing.assert_close(alone, log_prob[molecule], atol=1e-6, rtol=0)


def test_batched_coordinates_are_those_of_each_molecule_alone():
    coordinates = InternalCoordinates(len(KINDS)).double()
    coordinates.offsets += torch.linspace(-3, 3, len(KINDS))
    tokens, logabsdet = coordinates(padded(POSITIONS), BATCH)
    for row, (topology, context, x) in enumerate(zip(TOPOLOGIES, CONTEXTS, POSITIONS, strict=True)):
        frames = LocalFrames(bonds(topology), x.shape[1], elements(topology), root=atom(topology, 0, "CA"))
        spherical = Spherical(coordinates.offsets[context[ROWS_BEFORE_TOKENS:, Column.KIND]])
        expected, first = frames(x)
        expected, second = spherical(expected)
        torch.testing.assert_close(tokens[row, : len(context) - 2], expected[0], atol=1e-10, rtol=0)
        assert (tokens[row, len(context) - 2 :] == 0).all()
        torch.testing.assert_close(logabsdet[row], (first + second)[0], atol=1e-9, rtol=0)
    back, inverse = coordinates.inverse(tokens, BATCH)
    torch.testing.assert_close(coordinates(back, BATCH)[0], tokens, atol=1e-9, rtol=0)
    torch.testing.assert_close(inverse, -logabsdet, atol=1e-9, rtol=0)


def test_gradients_of_a_padded_batch_are_finite():
    flow = make_flow()
    x = padded(POSITIONS).float().requires_grad_(True)
    flow.log_prob(x, BATCH).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in flow.parameters())
    assert x.grad.isfinite().all()
    assert (x.grad[0, len(CONTEXTS[0]) :] == 0).all()


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=SEQUENCES)
def test_split_coordinates_are_the_flow_and_need_no_context(flow, topology):
    one = flow.given(topology)
    fixed, rest = one.split_coordinates()
    x = draw_positions(topology, 4, seed=9)
    y, logabsdet = fixed(x)
    assert y.shape == (4, x.shape[1] - 2, 3)
    torch.testing.assert_close(rest.log_prob(y) + logabsdet, one.log_prob(x), atol=1e-8, rtol=0)
    y, log_prob = rest.sample_and_log_prob(4, seed=0)
    x, logabsdet = fixed.inverse(y)
    torch.testing.assert_close(one.log_prob(x), log_prob - logabsdet, atol=1e-6, rtol=0)


def test_the_atoms_order_in_the_topology_makes_no_difference(flow):
    topology, shuffled = make_topology("SAG"), make_topology("SAG", seed=1)
    names = [[(atom.residue.index, atom.name) for atom in t.atoms()] for t in (topology, shuffled)]
    order = [names[0].index(name) for name in names[1]]
    assert order != sorted(order)
    x = draw_positions(topology, 3)
    torch.testing.assert_close(flow.given(shuffled).log_prob(x[:, order]), flow.given(topology).log_prob(x))


@pytest.mark.parametrize("letter", LETTERS)
def test_every_residue_at_every_place_has_a_density(letter):
    """Though of most of them the marginals were fitted to no data of their own."""
    flow = make_flow(num_blocks=1)
    molecules = [make_topology(sequence) for sequence in (letter, letter + "G", "G" + letter, "A" + letter + "A")]
    positions = [draw_positions(molecule, 1, dtype=torch.float32) for molecule in molecules]
    assert flow.log_prob(padded(positions), flow.context(*molecules)).isfinite().all()
    assert flow.given(molecules[-1]).sample((2,), seed=0).isfinite().all()


def test_the_kinds_are_the_atoms_of_all_residues():
    for letter, residue in LETTERS.items():
        for sequence, number in ((letter, 0), (letter + "G", 0), ("G" + letter, 1), ("A" + letter + "A", 1)):
            context = internal_context(make_topology(sequence))
            kinds = [KINDS[kind] for kind in context[context[:, 2] == number + 1, Column.KIND]]
            names = atoms_of(residue, number == 0, number == len(sequence) - 1)
            assert {(residue, name) for name in names} == {kind[:2] for kind in kinds}
            assert sum(kind[2] == ROOT for kind in kinds) == (number == 0)


def test_orderings_visit_every_token_once():
    context = internal_context(make_topology("AW"), ORDERINGS)
    rows = torch.arange(len(context))
    for column in context[:, -len(ORDERINGS) :].T:
        assert torch.equal(column.sort().values, rows)
        assert torch.equal(column[:ROWS_BEFORE_TOKENS], rows[:ROWS_BEFORE_TOKENS])
    heavy = context[:, -4]
    carries_hydrogen = context[heavy, 0] >= 18  # the codes of hydrogens begin with H's, and end before N's
    hydrogens = (context[heavy, 0] <= 36) & carries_hydrogen
    assert not (hydrogens[2:-1] & ~hydrogens[3:]).any()


def test_a_saved_flow_comes_back(tmp_path):
    flow = make_flow()
    again = InternalProse.from_pretrained(flow.save_pretrained(tmp_path))
    x = padded(POSITIONS).float()
    torch.testing.assert_close(again.log_prob(x, BATCH), flow.log_prob(x, BATCH), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"channels": 0}, "channels"),
        ({"condition_channels": 7}, "even"),
        ({"layers_per_block": [1, 2, 3]}, "layers_per_block"),
        ({"conditional": "linear"}, "conditional"),
        ({"conditional": "circular"}, "conditional must be one of affine, spline, quadratic, binned, mixture"),
        ({"orderings": ["z-matrix", "run"]}, "run"),
        ({"orderings": []}, "at least one"),
        ({"num_atom_types": 3}, "room"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        InternalProse(**{"channels": 16, "head_dim": 8, "condition_channels": 8} | settings)


def test_contexts_that_do_not_fit_are_refused(flow):
    x = padded(POSITIONS)
    wrong = BATCH.clone()
    wrong[0, 5, Column.P] = 9
    beyond = BATCH.clone()
    beyond[0, 5, Column.KIND] = len(KINDS)
    for context, words in (
        (None, "needs the context"),
        (BATCH.double(), "int64"),
        (BATCH[..., :-1], "expected a context"),
        (wrong, "no frame"),
        (beyond, "no frame or kind"),
        (BATCH[:, :-1], "permutation"),
    ):
        with pytest.raises(ValueError, match=words):
            flow.log_prob(x, context)
    with pytest.raises(ValueError, match="do not fit"):
        flow.log_prob(x[:, :-1], BATCH)
    with pytest.raises(ValueError, match="too long"):
        make_flow(max_atoms=20).log_prob(x.float(), BATCH)


def bonds(topology):
    return [(bond[0].index, bond[1].index) for bond in topology.bonds()]


def elements(topology):
    return [atom.name[0] for atom in topology.atoms()]


def atom(topology, residue, name):
    return next(atom.index for atom in topology.atoms() if atom.name == name and atom.residue.index == residue)


def test_a_saved_flow_samples_the_peptide_that_is_asked_for(tmp_path):
    make_flow().save_pretrained(tmp_path)
    samples = sample(load_flow(Peptide("GG"), tmp_path), Peptide("GG"), 20, seed=0)
    assert samples.x.shape == (20, Peptide("GG").num_atoms, 3)
    with pytest.raises(ValueError, match="caps"):
        load_flow(Peptide("Ace-A-Nme"), tmp_path)


def test_without_neighbours_a_chain_is_told_of_its_own_residue_alone():
    flow, told = make_flow(neighbours=False), make_flow()
    embedding, other = (
        next(module for module in part.modules() if isinstance(module, SiteEmbedding)) for part in (flow, told)
    )
    assert embedding.previous_residue is None and embedding.next_residue is None
    context = CONTEXTS[0][None]
    changed = context.clone()
    changed[..., Column.NEXT_RESIDUE] += 1
    same = [torch.allclose(part(context), part(changed)) for part in (embedding, other)]
    assert same == [True, False]
    assert flow.double().log_prob(POSITIONS[0], context).isfinite().all()
