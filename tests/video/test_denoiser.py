"""Attention by windows of frames against a mask over all tokens; the denoiser's reach, and mistakes."""

import pytest
import torch

from nflib.networks import Rotary
from tests.perturb import perturb
from tests.video.tiny import small_video_flow
from video.flows.denoiser import FrameWindowAttention
from video.flows.positions import axial_coordinates

WORDS, LENGTH, FRAMES = 3, 4, 5


@pytest.mark.parametrize("words", [0, WORDS])
@pytest.mark.parametrize("past", [0, 1, None])
@pytest.mark.parametrize("future", [0, 2])
@torch.no_grad()
def test_windows_are_a_mask(words, past, future):
    rotary = Rotary(axial_coordinates(words, FRAMES, 2, 2, 2.0), 12)
    attention = FrameWindowAttention(
        24,
        head_dim=12,
        num_key_value_heads=1,
        rotary=rotary,
        text_length=words,
        frame_length=LENGTH,
        past=past,
        future=future,
    )
    x = torch.randn(2, words + FRAMES * LENGTH, 24)
    frame = torch.cat([torch.zeros(words), torch.arange(FRAMES).repeat_interleave(LENGTH)])
    is_word = torch.arange(len(frame)) < words
    ahead = frame[None, :] - frame[:, None]
    mask = ahead <= future
    if past is not None:
        mask &= (ahead >= -past) | is_word[:, None]
    mask |= is_word[None, :]
    query, key, value = attention.qkv(x).split([24, 12, 12], -1)
    query, key, value = (part.unflatten(-1, (-1, 12)).transpose(1, 2) for part in (query, key, value))
    query, key, value = rotary(query, 0), rotary(key, 0).expand(-1, 2, -1, -1), value.expand(-1, 2, -1, -1)
    scores = (query @ key.mT / 12**0.5).masked_fill(~mask, float("-inf"))
    expected = attention.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected, atol=1e-6, rtol=0)


def test_reach():
    """Two layers, each of one frame back and one on: what a frame's prediction depends on."""
    flow = small_video_flow(denoiser={"num_layers": 1, "past": 1, "use_text": False}).resized((6, 2, 2, 4))
    clips = torch.randn(1, 6, 2, 2, 4, requires_grad=True)
    predicted = flow.denoiser(clips)
    assert predicted.shape == clips.shape
    (gradient,) = torch.autograd.grad(predicted[:, 3].sum(), clips)
    assert (gradient.abs().amax((0, 2, 3, 4)) > 0).tolist() == [False, False, True, True, True, False]


@torch.no_grad()
def test_the_flow_does_not_depend_on_its_denoiser():
    flow = small_video_flow()
    x, text = torch.randn(1, 3, 2, 2, 4), torch.randn(1, 3, 10)
    before = flow.log_prob(x, text)
    torch.testing.assert_close(flow.denoiser.denoise(x, text), x - 0.3 * flow.denoiser(x, text))
    perturb(flow.denoiser)
    assert torch.equal(flow.log_prob(x, text), before)


def test_mistakes():
    flow = small_video_flow()
    with pytest.raises(ValueError, match="text of shape"):
        flow.denoiser(torch.zeros(1, 3, 2, 2, 4))
    with pytest.raises(ValueError, match="4 frames are more than the 3"):
        flow.denoiser(torch.zeros(1, 4, 2, 2, 4), torch.zeros(1, 3, 10))
    with pytest.raises(ValueError, match="no setting 'window'"):
        small_video_flow(denoiser={"window": 3})
    with pytest.raises(ValueError, match="past -1"):
        small_video_flow(denoiser={"past": -1})
