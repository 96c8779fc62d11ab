"""What a step of a transferable flow sees of the atoms before it."""

import math

import pytest
import torch

from molecular import InternalProse
from molecular.coordinates.local_frames import frames_at
from molecular.flows.local_environment import CENTRES, CIRCLE, HARMONICS, NUM_ANGULAR, RELATIVE_WIDTH, SCALE
from molecular.molecule.internal_context import ROWS_BEFORE_TOKENS, Column
from tests.molecular.peptide_topologies import padded
from tests.molecular.three_peptides import BATCH, CONTEXTS, POSITIONS, TOPOLOGIES, make_flow


def local_environment(flow):
    return flow.blocks[1].network.features


def tokens_of(flow, positions, context):
    """The tokens that the first block reads, in the order of its visit."""
    tokens, _ = flow.coordinates(positions, context)
    tokens, _ = flow.marginals(tokens, context)
    return flow.blocks[0](tokens, context)[0]


@pytest.mark.parametrize("ordering", ["z-matrix", "residues", "heavy-first"])
@torch.no_grad()
def test_they_are_the_density_of_earlier_atoms_in_the_frame_of_the_next(ordering):
    """Atom by atom, with azimuths by atan2."""
    flow = make_flow(orderings=[ordering, "z-matrix_flip"], num_blocks=2).double()
    part = local_environment(flow)
    context = flow.context(TOPOLOGIES[2])
    x = POSITIONS[2]
    seen = {}
    part.mlp.register_forward_pre_hook(lambda module, inputs: seen.setdefault("features", inputs[0]))
    visit = part.encode_context(context)
    part(tokens_of(flow, x, context)[:, :-1], 0, None, visit)
    order = context[0, ROWS_BEFORE_TOKENS:, part.column]
    in_order = x[0, context[0, :, Column.ATOM]]
    weights = part.weights(part.embedding(context))[0]
    for token in (1, 4, len(order) - 1):
        row = context[0, order[token]]
        p, q, s = (in_order[row[column]] for column in (Column.P, Column.Q, Column.S))
        expected = torch.zeros(len(CENTRES), NUM_ANGULAR, weights.shape[1], dtype=torch.float64)
        for other in [0, 1, *order[:token].tolist()]:
            local = frames_at(p, q, s) @ (in_order[other] - p) - torch.tensor([CIRCLE, 0.0, 0.0])
            distance, azimuth = float(local.norm()), math.atan2(local[2], local[1])
            sine = math.hypot(local[1], local[2]) / distance
            angular = [1.0, float(local[0]) / distance]
            for m in range(1, HARMONICS + 1):
                angular += [sine**m * math.cos(m * azimuth), sine**m * math.sin(m * azimuth)]
            for k, centre in enumerate(CENTRES):
                radial = math.exp(-0.5 * ((distance - centre) / (RELATIVE_WIDTH * centre + 0.02)) ** 2)
                expected[k] += radial * torch.tensor(angular, dtype=torch.float64)[:, None] * weights[other]
        torch.testing.assert_close(seen["features"][0, token], SCALE * expected.flatten(), atol=2e-4, rtol=1e-3)
    assert (seen["features"][0, 0] == 0).all()


@torch.no_grad()
def test_steps_one_by_one_see_what_one_pass_sees():
    flow = make_flow().double()
    part = local_environment(flow)
    tokens = tokens_of(flow, padded(POSITIONS), BATCH)
    visit = part.encode_context(BATCH)
    whole = part(tokens[:, :-1], 0, None, visit)
    memory = part.new_memory(len(tokens), tokens.shape[1])
    steps = [part(tokens[:, :0], 0, memory, visit)]
    steps += [part(tokens[:, t - 1 : t], t, memory, visit) for t in range(1, tokens.shape[1])]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-10, rtol=0)


def test_they_have_gradients_with_respect_to_positions():
    flow = make_flow().double()
    x = POSITIONS[0].clone().requires_grad_()
    torch.autograd.gradcheck(lambda x: flow.log_prob(x, CONTEXTS[0][None]), (x,), atol=1e-4, rtol=1e-3)


def test_an_ordering_that_visits_references_last_is_refused():
    with pytest.raises(ValueError, match="local_environment needs an ordering"):
        InternalProse(channels=16, head_dim=8, condition_channels=8, orderings=["z-matrix_flip", "z-matrix"])
    InternalProse(
        channels=16, head_dim=8, condition_channels=8, orderings=["z-matrix_flip", "z-matrix"], local_environment=False
    )
