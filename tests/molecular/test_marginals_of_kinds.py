"""Marginals of the kinds of atoms of a corpus: what a kind that few molecules have takes from its relatives."""

import torch

from molecular import InternalProse
from molecular.flows.marginals import MAX_DATA, MIN_MOLECULES, _closest, _Seen, _torsions
from molecular.molecule.internal_context import ROWS_BEFORE_TOKENS, Column, internal_context
from molecular.molecule.kinds import KINDS, MIDDLE, ROOT, kind_number
from tests.molecular.peptide_topologies import draw_positions, make_topology

FRAMES = 400
KIND = kind_number("ALA", "C", MIDDLE)
DIPEPTIDES = [letter + "A" for letter in "GASCVTLK"]


def batch(sequence, noise=0.2, seed=0):
    """A batch of one molecule: conformations of no physics or, with little noise, all like the first of them."""
    topology = make_topology(sequence)
    x = draw_positions(topology, FRAMES, seed, dtype=torch.float32)
    if noise < 0.2:
        x = x[:1] + noise * x
    return {"inputs": x, "context": internal_context(topology).expand(FRAMES, -1, -1)}


def fitted(batches):
    flow = InternalProse(channels=2, num_blocks=1, layers_per_block=1, head_dim=2)
    return flow.fitted(batches)


def normal_torsions(flow, part):
    """The torsions of a batch that are of `KIND`, mapped by its marginal."""
    tokens, _ = flow.coordinates(part["inputs"], part["context"])
    z, _ = flow.marginals(tokens, part["context"])
    return z[part["context"][:, ROWS_BEFORE_TOKENS:, Column.KIND] == KIND][:, 2]


def test_torsions_that_few_molecules_have_are_fitted_with_those_of_relatives():
    few, anything = batch("SAG", noise=0.001), batch("SAG", seed=1)
    assert len(DIPEPTIDES) == MIN_MOLECULES
    dipeptides = [batch(sequence) for sequence in DIPEPTIDES]
    alone, too_few, together = (fitted([few, *dipeptides[:count]]) for count in (0, MIN_MOLECULES - 1, MIN_MOLECULES))
    # What one molecule leaves empty has the uniform share alone, unless the end of a chain was seen there.
    for flow in (alone, too_few):
        assert normal_torsions(flow, anything).abs().median() > 3.5
    z = normal_torsions(together, anything)
    assert z.abs().max() < 3.5 and z.abs().median() < 1.5
    # One molecule of eight has its share of the probability, and lengths and angles are its own.
    share = torch.special.ndtr(normal_torsions(together, few)).aminmax()
    assert 0.05 < share.max - share.min < 0.3
    own = slice(3 * KIND, 3 * KIND + 2)
    assert torch.equal(together.marginals.knots_x[own], alone.marginals.knots_x[own])


def test_torsions_of_many_molecules_are_their_own():
    middle = [batch(sequence + "G") for sequence in DIPEPTIDES]
    assert len(middle) == MIN_MOLECULES
    alone = fitted(middle)
    together = fitted([*middle, *(batch(sequence, noise=0.001) for sequence in DIPEPTIDES)])
    assert torch.equal(together.marginals.knots_x[3 * KIND + 2], alone.marginals.knots_x[3 * KIND + 2])


def test_relatives_have_their_share_however_many_frames_there_are():
    """One molecule of eight: its own torsions are an eighth of what is fitted, of few frames and of many."""
    kinds = [kind for kind, described in enumerate(KINDS) if described[2] != ROOT]
    for count in (100, MAX_DATA):
        own, relatives = torch.zeros(count, 3), torch.ones(MAX_DATA, 3)
        for kind in kinds[:3]:
            others = {
                other: _Seen(relatives, MIN_MOLECULES) for other in _closest(kind, [k for k in kinds if k != kind])
            }
            fitted = _torsions({kind: _Seen(own, 1), **others}, kind, own[:, 2])
            assert abs(float((fitted == 0).double().mean()) - 1 / MIN_MOLECULES) < 0.01
