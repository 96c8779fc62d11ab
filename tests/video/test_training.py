"""The objective of video training."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from examples.moving_digits.data import ON_AND_ON, MovingDigits
from examples.moving_digits.grown import with_more_layers
from nflib.training import TrainingConfig, fit
from tests.quiet import QUIET
from tests.video.tiny import SEVEN, small_image_flow, tiny_model
from video.data import encode_clips
from video.flows.denoiser import UNIT
from video.training import NoisyLikelihood

NOISE = 0.1
ON = f"moving {ON_AND_ON}"


@pytest.fixture(scope="module")
def model():
    return tiny_model(3)


@pytest.fixture
def batch(model):
    generator = torch.Generator().manual_seed(0)
    context = model.condition([SEVEN, "a two"])
    return {
        "inputs": torch.randn(2, 3, 2, 4, 4, generator=generator),
        "context": context,
        "stills": torch.randn(2, 5, 2, 4, 4, generator=generator),
        "stills_context": context[:, None].expand(-1, 5, -1, -1),
    }


def loss_of(model, batch, noise=NOISE):
    objective = NoisyLikelihood(noise, 0.1, model.condition(["", ON]))
    return objective(model.flow, batch, torch.Generator().manual_seed(1))


def test_stills_add_their_nats_per_dimension(model, batch):
    whole, metrics = loss_of(model, batch, noise=0.0)
    clips, _ = loss_of(model, {name: batch[name] for name in ("inputs", "context")}, noise=0.0)
    stills = batch["stills"].flatten(0, 1).unsqueeze(1)
    with torch.no_grad():
        expected = -model.flow.log_prob(stills, batch["stills_context"].flatten(0, 1)).mean() / 32
    torch.testing.assert_close(whole - clips, expected)
    torch.testing.assert_close(metrics["stills_nats_per_dim"], expected)


def test_the_denoiser_learns_the_flows_score(model, batch):
    clips = {name: batch[name] for name in ("inputs", "context")}
    _, metrics = loss_of(model, clips)
    noise = torch.randn(batch["inputs"].shape, generator=torch.Generator().manual_seed(1))
    noisy = batch["inputs"] + NOISE * noise
    target = -(NOISE**2) * model.flow.score(noisy, batch["context"]) / UNIT
    error = (model.flow.denoiser(noisy, batch["context"]) - target).square().mean()
    torch.testing.assert_close(metrics["denoiser_error"], error)


def test_a_denoiser_that_is_not_to_learn_costs_nothing(model, batch):
    clips = {name: batch[name] for name in ("inputs", "context")}
    objective = NoisyLikelihood(NOISE, 0.1, model.condition(["", ON]), learn_denoiser=False)
    loss, metrics = objective(model.flow, clips, torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss.detach(), loss_of(model, clips)[1]["nats_per_dim"])
    assert set(metrics) == {"nats_per_dim"}
    loss.backward()
    assert all(parameter.grad is None for parameter in model.flow.denoiser.parameters())
    model.flow.zero_grad()


def test_frames_that_are_given_are_read_and_not_learnt(model, batch):
    clips = {name: batch[name] for name in ("inputs", "context")} | {"num_given": torch.tensor([0, 2])}
    objective = NoisyLikelihood(NOISE, 0.0, model.condition(["", ON]), learn_denoiser=False)
    loss, _ = objective(model.flow, clips, torch.Generator().manual_seed(1))
    noisy = clips["inputs"] + NOISE * torch.randn(clips["inputs"].shape, generator=torch.Generator().manual_seed(1))
    noisy[1, :2] = clips["inputs"][1, :2]
    whole = model.flow.log_prob(noisy, clips["context"])
    given = model.flow.log_prob(noisy[1:, :2], clips["context"][1:])
    torch.testing.assert_close(loss, -(whole.sum() - given.sum()) / (4 * 2 * 4 * 4))
    emphatic = replace(objective, emphasis=5.0)
    loss, _ = emphatic(model.flow, clips, torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss, -(whole[0] + 5 * (whole[1] - given[0])) / (8 * 2 * 4 * 4))


def test_given_frames_but_an_anchor_have_more_noise(model):
    clips, seen = torch.zeros(500, 3, 2, 4, 4), []

    def log_prob_of_frames(inputs, context):
        seen.append(inputs)
        return inputs.sum((2, 3, 4))

    flow = SimpleNamespace(training=False, denoiser=None, log_prob_of_frames=log_prob_of_frames)
    batch = {"inputs": clips, "context": clips, "num_given": torch.full((500,), 2)}
    objective = NoisyLikelihood(NOISE, 0.0, model.condition(["", ON]), learn_denoiser=False, context_noise=0.9)
    is_anchored = torch.arange(500) < 250
    for anchors in ({}, {"is_anchored": is_anchored}):
        objective(flow, batch | anchors, torch.Generator().manual_seed(1))
    plain, anchored = (inputs.flatten(2).std(-1) for inputs in seen)
    # Deviations are uniform in 0 … 0.9; the last frame is not given.
    for given in (plain[:, 0], plain[:, 1], anchored[250:, 0], anchored[:, 1]):
        assert 0.4 < float(given.mean()) < 0.5 and 0.8 < float(given.max()) < 1.2
    assert not anchored[:250, 0].any()
    assert float(plain[:, 2].mean()) == pytest.approx(NOISE, rel=0.05)


def test_dropped_prompts_of_anchored_clips_say_that_they_are(model, batch):
    clips = {name: batch[name] for name in ("inputs", "context")} | {"is_anchored": torch.tensor([False, True])}
    unconditional = model.condition(["", ON])
    flow = model.flow.train()
    try:
        dropped, _ = NoisyLikelihood(0.0, 1.0, unconditional, learn_denoiser=False)(flow, clips, torch.Generator())
    finally:
        flow.eval()
    torch.testing.assert_close(dropped, -flow.log_prob(batch["inputs"], unconditional).mean() / (3 * 2 * 4 * 4))


def test_given_frames_are_encoded_with_noise(model):
    clips = MovingDigits("train", 20, 4, cuts=1.0, anchored=0.5, seed=2)
    noisy, clean = (encode_clips(clips, model.latents, model.text, noise=noise) for noise in (NOISE, 0.0))
    assert torch.equal(noisy["is_anchored"], clips.clips().is_anchored)
    is_given = torch.arange(4) < noisy["num_given"][:, None]
    noise = noisy["inputs"] - clean["inputs"]
    assert not noise[~is_given].any()
    assert float(noise[is_given].std()) == pytest.approx(NOISE, rel=0.1)


def test_new_layers_change_nothing_at_first(model, batch):
    deeper = with_more_layers(model.flow, 2)
    assert deeper.config["layers_per_block"] == [1, 3]
    assert model.flow.config["layers_per_block"] == [1, 1]
    expected = model.flow.log_prob(batch["inputs"], batch["context"])
    torch.testing.assert_close(deeper.log_prob(batch["inputs"], batch["context"]), expected)
    torch.testing.assert_close(
        deeper.denoiser(batch["inputs"], batch["context"]), model.flow.denoiser(batch["inputs"], batch["context"])
    )


@pytest.mark.parametrize("settings", [{}, {"text_length": 0, "text_channels": 0}, {"denoiser": {"num_layers": 1}}])
def test_images(settings, tmp_path):
    """Of an image flow, the loss is its nats per dimension."""
    flow = small_image_flow(**settings)
    images = torch.randn(3, 2, 4, 4)
    batch = {"inputs": images} | ({} if "text_length" in settings else {"context": torch.randn(3, 3, 10)})
    objective = NoisyLikelihood(0.0, 0.1, torch.zeros(2, 3, 10))
    _, metrics = objective(flow, batch, torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = -flow.log_prob(images, batch.get("context")).mean() / 32
    torch.testing.assert_close(metrics["nats_per_dim"], expected)
    result = fit(
        flow, batch, config=TrainingConfig(batch_size=3, max_steps=2, **QUIET), objective=objective, output=tmp_path
    )
    assert result.steps == 2
