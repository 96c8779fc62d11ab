"""The shipped model of moving digits: it is small, knows its prompts, and tells clips from noise."""

import pytest

from examples.moving_digits.data import MovingDigits
from examples.moving_digits.evaluate import spoiled
from video.parts import MOVING_DIGITS, SHIPPED
from video.pipeline import Pipeline
from video.pipeline_settings import SETTINGS

pytestmark = pytest.mark.skipif(not (SHIPPED / MOVING_DIGITS / SETTINGS).is_file(), reason="no model is shipped")


@pytest.fixture(scope="module")
def model():
    return Pipeline.load()


def test_size():
    assert sum(path.stat().st_size for path in (SHIPPED / MOVING_DIGITS).rglob("*") if path.is_file()) < 24 * 2**20


def test_it_makes_clips_of_digits(model):
    clips = MovingDigits("held_out", 4, 16, cuts=0.0, seed=8).clips()
    made = model.generate(clips.prompts, seed=0)
    assert made.shape == clips.frames.shape
    # As dark, and as bright, as moving digits are.
    assert float(made.mean()) == pytest.approx(float(clips.frames.mean()), abs=0.1)
    assert float(made.amax((2, 3, 4)).mean()) > 0.5


def test_right_clips_score_above_wrong_ones(model):
    clips = MovingDigits("held_out", 20, 16, cuts=0.0, seed=9).clips()
    right = model.log_prob(clips.frames, clips.prompts)
    for frames in spoiled(clips).values():
        assert float((right > model.log_prob(frames, clips.prompts)).float().mean()) >= 0.9


def test_long_clips_keep_their_first_frame_in_every_window(model):
    drawn = model.draw(["a seven moving up, fast"], 20, seed=0)
    assert [window.is_anchored for window in drawn.windows] == [False, True]
