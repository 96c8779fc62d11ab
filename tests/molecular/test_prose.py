"""The Prose flow: exact densities of padded batches, sampling, saving, and what it refuses."""

import pytest
import torch
from safetensors.torch import load_file

from molecular import Peptide, Prose
from molecular.molecule.features import ATOM_TYPES, RESIDUE_TYPES, pad, prose_context
from molecular.molecule.orderings import PROSE_ORDERINGS
from nflib import decoding
from nflib.montecarlo import BoltzmannDensity, importance_sample
from tests.perturb import check_gradients, perturb

ORDERINGS = PROSE_ORDERINGS[:2]


def make_flow(**settings):
    """A small flow away from the identity, yet not so far that a sample overflows."""
    torch.manual_seed(0)
    defaults = {"channels": 16, "num_blocks": 3, "layers_per_block": 1, "head_dim": 8, "expansion": 2}
    return perturb(Prose(**(defaults | {"orderings": ORDERINGS, "scale": 0.5} | settings)), 0.05)


def make_context(num_atoms, seed=0):
    """Any codes, in any orderings: of no molecule, but of the shape of one."""
    generator = torch.Generator().manual_seed(seed)
    codes = [torch.randint(1, 1 + top, (num_atoms,), generator=generator) for top in (len(ATOM_TYPES), 20, 8, 8)]
    orderings = [torch.randperm(num_atoms, generator=generator) for _ in ORDERINGS]
    return torch.stack([*codes, *orderings], dim=-1)


CONTEXTS = [make_context(n, seed=n) for n in (5, 9, 7)]
BATCH = pad(CONTEXTS)
MASK = BATCH[..., 0] > 0


def draw_positions(context):
    return 0.5 * torch.randn(*context.shape[:2], 3, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("context", CONTEXTS, ids=len)
def test_log_prob_is_the_change_of_variables_by_a_dense_jacobian(context):
    flow = make_flow().double()
    context = context[None]
    x = draw_positions(context)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.transform_to_noise(x, context), x)
    base = torch.distributions.Normal(0.0, 1.0).log_prob(flow.transform_to_noise(x, context)).sum()
    expected = base + torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel())).logabsdet
    torch.testing.assert_close(flow.log_prob(x, context)[0], expected, atol=1e-9, rtol=0)


@torch.no_grad()
def test_padding_carries_no_density():
    flow = make_flow().double()
    x = draw_positions(BATCH)
    log_prob = flow.log_prob(x, BATCH)
    alone = [flow.log_prob(x[i : i + 1, : len(c)], c[None]) for i, c in enumerate(CONTEXTS)]
    torch.testing.assert_close(log_prob, torch.cat(alone), atol=1e-10, rtol=0)
    torch.testing.assert_close(flow.log_prob(x[[2, 0, 1]], BATCH[[2, 0, 1]]), log_prob[[2, 0, 1]], atol=1e-10, rtol=0)
    moved = torch.where(MASK.unsqueeze(-1), x, x + 3.0)
    torch.testing.assert_close(flow.log_prob(moved, BATCH), log_prob, atol=1e-10, rtol=0)
    longer = torch.nn.functional.pad(x, (0, 0, 0, 4))
    wider = pad([*CONTEXTS, make_context(13)])[:3]
    torch.testing.assert_close(flow.log_prob(longer, wider), log_prob, atol=1e-10, rtol=0)


@torch.no_grad()
def test_one_context_for_many_rows_is_that_context_in_every_row():
    flow = make_flow().double()
    context = CONTEXTS[1]
    x = draw_positions(context.expand(4, -1, -1))
    expanded, repeated = context.expand(4, -1, -1), context.repeat(4, 1, 1)
    torch.testing.assert_close(flow.log_prob(x, expanded), flow.log_prob(x, repeated), atol=1e-10, rtol=0)


@pytest.mark.parametrize("decoder", [None, decoding.Jacobi(), decoding.Jacobi(0.0), decoding.GaussSeidelJacobi(3)])
@torch.no_grad()
def test_samples_of_a_padded_batch(decoder):
    flow = make_flow().double()
    x, log_prob = flow.sample_and_log_prob(4, BATCH, seed=0, batch_size=5, decoding=decoder)
    assert x.shape == (3, 4, 9, 3) and log_prob.shape == (3, 4)
    assert (x[~MASK[:, None].expand(-1, 4, -1)] == 0).all()
    rows = x.flatten(0, 1)
    torch.testing.assert_close(
        flow.log_prob(rows, BATCH.repeat_interleave(4, dim=0)), log_prob.flatten(), atol=1e-6, rtol=0
    )
    sequential = flow.sample(4, BATCH, seed=0)
    torch.testing.assert_close(x, sequential, atol=1e-4, rtol=0)
    assert torch.equal(flow.sample(4, BATCH, seed=0, batch_size=5, decoding=decoder), x)


@torch.no_grad()
def test_padded_decoding_equals_that_of_each_molecule():
    flow = make_flow().double()
    noise = draw_positions(BATCH).masked_fill(~MASK.unsqueeze(-1), 0.0)
    for decoder in (None, decoding.Jacobi(0.0)):
        x = flow.decode(noise, BATCH, decoding=decoder)
        for row, context in enumerate(CONTEXTS):
            n = len(context)
            alone = flow.decode(noise[row : row + 1, :n], context[None], decoding=decoder)
            torch.testing.assert_close(x[row, :n], alone[0], atol=1e-10, rtol=0)
            assert (x[row, n:] == 0).all()


@torch.no_grad()
def test_a_new_flow_is_a_normal_of_its_scale():
    flow = Prose(channels=16, num_blocks=2, layers_per_block=1, head_dim=8, orderings=ORDERINGS, scale=0.3)
    x = draw_positions(BATCH).float()
    density = torch.distributions.Normal(0.0, 0.3).log_prob(x).sum(-1)
    torch.testing.assert_close(flow.log_prob(x, BATCH), (density * MASK).sum(-1), atol=1e-4, rtol=1e-5)


def test_gradients_reach_every_parameter():
    flow = make_flow()
    flow.log_prob(draw_positions(BATCH).float(), BATCH).sum().backward()
    check_gradients(flow)


def test_score_is_zero_at_padding():
    score = make_flow().double().score(draw_positions(BATCH), BATCH)
    assert (score[~MASK] == 0).all() and (score[MASK] != 0).all()


def test_an_atom_knows_itself_and_what_was_visited_but_no_more():
    flow = make_flow(num_blocks=1, channels=32).double()
    context = CONTEXTS[1][None]
    order = context[0, :, 4]
    x = draw_positions(context)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.transform_to_noise(x, context), x)
    by_visit = jacobian[0, :, :, 0].abs().amax((1, 3))[order][:, order]
    assert (by_visit.triu(1) == 0).all() and (by_visit.tril() > 0).sum() == 9 * 10 / 2
    # The codes of the atom visited t-th steer it and all after it: its map is told of it one step ahead.
    other = context.clone()
    other[0, order[4], 0] = 1 + other[0, order[4], 0] % len(ATOM_TYPES)
    with torch.no_grad():
        changed = (flow.transform_to_noise(x, other) - flow.transform_to_noise(x, context)).abs().amax((0, 2))[order]
    assert (changed[:4] == 0).all() and (changed[4:] > 0).all()


def test_saving(tmp_path):
    flow = make_flow()
    flow.save_pretrained(tmp_path)
    again = Prose.from_pretrained(tmp_path)
    assert again.config == flow.config
    x = draw_positions(BATCH).float()
    with torch.no_grad():
        assert torch.equal(again.log_prob(x, BATCH), flow.log_prob(x, BATCH))
    stored = load_file(tmp_path / "model.safetensors")
    assert sum(name.endswith("atom_type.weight") for name in stored) == 1  # though each block has the embedding
    assert stored.keys() == dict(flow.named_parameters()).keys()


@torch.no_grad()
def test_one_peptide():
    peptide = Peptide("AA", force_field=["amber99sbildn.xml"])
    flow = make_flow(orderings=PROSE_ORDERINGS, num_blocks=2)
    assert torch.equal(flow.context(peptide), prose_context(peptide)[None])
    of_peptide = flow.given(peptide)
    x, log_prob = of_peptide.sample_and_log_prob(6, seed=0, batch_size=4)
    assert x.shape == (6, 23, 3) and log_prob.shape == (6,)
    torch.testing.assert_close(of_peptide.log_prob(x), log_prob, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(flow.log_prob(x, flow.context(peptide).repeat(6, 1, 1)), log_prob, atol=1e-4, rtol=1e-5)
    assert torch.equal(of_peptide.sample((6,), seed=0, batch_size=4), x)
    target = BoltzmannDensity(lambda x: 0.5 * x.square().flatten(1).sum(-1))
    weighted = importance_sample(of_peptide, target, 6, seed=0)
    x, log_prob = flow.sample_and_log_prob(6, flow.context(peptide), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        weighted.log_weights, (target.log_prob(x[0]) - log_prob[0]).double(), atol=1e-4, rtol=1e-5
    )
    with pytest.raises(ValueError, match="expected values"):
        of_peptide.log_prob(x[..., :-1, :])
    with pytest.raises(ValueError, match="no contexts"):
        flow.context()


def test_contexts_that_do_not_fit():
    flow = make_flow(max_atoms=9)
    x = torch.zeros(3, 9, 3)

    def message(context, x=x):
        with pytest.raises(ValueError) as caught:
            flow.log_prob(x, context)
        return str(caught.value)

    assert "needs the context" in message(None)
    with pytest.raises(ValueError, match="needs the context"):
        flow.sample(2)
    assert "(batch, atoms, 6)" in message(BATCH[..., :5])
    assert "(batch, atoms, 6)" in message(BATCH[:, 0])
    assert "int64" in message(BATCH.float())
    assert "10 atoms is too long for this flow, which takes 9" in message(make_context(10).expand(3, -1, -1))
    assert "do not fit a context of 9 atoms" in message(BATCH, x[:, :8])
    assert "as many rows" in message(BATCH[:2])

    def altered(change):
        context = BATCH.clone()
        change(context)
        return message(context)

    for code, top in ((0, 128), (1, 64), (2, -1)):
        assert "code" in altered(lambda c, code=code, top=top: c[0, 0].__setitem__(code, top))
    zero_padded = torch.nn.utils.rnn.pad_sequence(CONTEXTS, batch_first=True)
    assert "permutation" in message(zero_padded)
    assert "permutation" in altered(lambda c: c[0, :, 4].copy_(c[0, :, 4].flip(0)))  # visits padding first
    assert "permutation" in altered(lambda c: c[0, 2].zero_())  # an atom that does not exist among those that do
    assert "permutation" in altered(lambda c: c[1, 3].__setitem__(5, 9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"orderings": ["n2c"]}, "unknown ordering 'n2c'"),
        ({"orderings": []}, "orderings must name at least one of"),
        ({"num_blocks": 0}, "num_blocks must be a positive number"),
        ({"layers_per_block": 0}, "layers_per_block must be a positive number"),
        ({"channels": 15, "head_dim": 5}, "even number of channels"),
        ({"head_dim": 5}, "multiple of head_dim"),
        ({"scale": 0.0}, "scale must be a positive length"),
        ({"num_residue_types": len(RESIDUE_TYPES)}, "need room"),
        ({"num_atom_types": len(ATOM_TYPES)}, "need room"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        make_flow(**settings)
