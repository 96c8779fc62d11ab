"""The decoder of clips: as token by token, by fewer passes; token by token where that is faster."""

import torch

from nflib import decoding
from tests.video.tiny import SEVEN
from video.commands.options import DrawingOptions
from video.flows.decoding import FramesAtOnce
from video.pipeline import Pipeline


def test_equals_token_by_token(model):
    z = torch.randn(1, 16, 8)
    context = model.condition([SEVEN])
    with decoding.report() as report:
        x = model.flow.decode(z, context, decoding=FramesAtOnce(4, frames=2))
    torch.testing.assert_close(x, model.flow.decode(z, context), atol=1e-3, rtol=0)
    deep, shallow = report.blocks
    assert max(deep.windows) == 8 and deep.sweeps < 16
    assert shallow.windows == (1, 1, 1, 1) and shallow.batch_size == 4


def test_many_clips_go_token_by_token(model):
    z = torch.randn(3, 16, 8)
    with decoding.report() as report:
        model.flow.decode(z, model.condition([SEVEN] * 3), decoding=FramesAtOnce(4, largest_batch=2))
    assert all(max(block.windows) == 1 for block in report.blocks)


def test_all_tokens_of_an_image_at_once():
    digits = Pipeline.load("digits")
    with decoding.report() as report:
        made = digits.generate(["seven"], seed=1, decoding=DrawingOptions(decoding="jacobi").decoder(digits))
    assert max(max(block.windows) for block in report.blocks) > 1
    torch.testing.assert_close(made, digits.generate(["seven"], seed=1), atol=1e-3, rtol=0)


def test_is_the_default(model):
    with decoding.report() as report:
        made = model.generate([SEVEN], seed=1)
    assert max(report.blocks[0].windows) > 1
    assert torch.equal(made, model.generate([SEVEN], seed=1, decoding=DrawingOptions(decoding="auto").decoder(model)))
    exact = model.generate([SEVEN], seed=1, decoding=DrawingOptions(decoding="sequential").decoder(model))
    torch.testing.assert_close(made, exact, atol=1e-3, rtol=0)
    with decoding.report() as report:
        assert torch.equal(model.generate([SEVEN], seed=1, decoding=decoding.Sequential()), exact)
    assert all(max(block.windows) == 1 for block in report.blocks)
