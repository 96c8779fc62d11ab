"""Moving digits: where they are, how they bounce, what is said of them, and that splits share no handwriting."""

import pytest
import torch

from examples.moving_digits.data import (
    AFTERGLOW,
    DIGIT,
    DIRECTIONS,
    DRIFTED_FRAMES,
    NUMBERS,
    ON_AND_ON,
    ROOM,
    SPEEDS,
    SPLITS,
    STRAIGHT,
    WORDS,
    MovingDigits,
    bounced,
    handwriting,
    prompt,
    render,
)
from video.text.encoders import Words


def test_splits_share_no_sample():
    images = {split: handwriting(split) for split in SPLITS}
    assert sum(len(labels) for _, labels in images.values()) == 1797
    for _, labels in images.values():
        assert labels.unique().tolist() == list(range(10))
    rows = torch.cat([pictures.flatten(1) for pictures, _ in images.values()])
    assert len(rows.unique(dim=0)) == len(rows)
    with pytest.raises(ValueError, match="split must be one of train"):
        handwriting("test")


def test_bounces_follow_a_ball():
    """Step by step, turning at the walls."""
    for start, speed in ((3, 2), (17, 2), (5, -1), (0, 1)):
        x, v, expected = start, speed, []
        for _ in range(100):
            expected.append(x)
            if not 0 <= x + v <= ROOM:
                wall = ROOM if v > 0 else 0
                x, v = 2 * wall - (x + v), -v
            else:
                x += v
        positions = bounced(torch.tensor([start, 0]), torch.tensor([speed, 0]), torch.arange(100))
        assert positions[:, 0].tolist() == expected


def test_render():
    digits = torch.rand(2, DIGIT, DIGIT)
    positions = torch.tensor([[[0, 0], [3, 5]], [[18, 18], [17, 18]]])
    light = (render(digits.unsqueeze(1), positions)[:, :, 0] + 1) / 2
    torch.testing.assert_close(light[0, 0, :14, :14], digits[0])
    assert light[0, 0, 14:].sum() == 0
    seen = torch.zeros(32, 32)
    seen[5:19, 3:17] = digits[0]
    torch.testing.assert_close(light[0, 1], torch.maximum(seen, AFTERGLOW * light[0, 0]))


def test_clips_are_what_their_prompts_say():
    clips = MovingDigits("validation", 64, 12, cuts=0.0, seed=5).clips()
    assert clips.frames.shape == (64, 12, 1, 32, 32)
    assert clips.frames.min() >= -1 and clips.frames.max() <= 1
    light = (clips.frames[:, :, 0] + 1) / 2
    for row in range(64):
        dx, dy = (
            n * list(SPEEDS.values())[clips.speeds[row]] for n in list(DIRECTIONS.values())[clips.directions[row]]
        )
        bright = (light[row] - AFTERGLOW).clamp(min=0)
        for step in range(1, STRAIGHT + 1):
            torch.testing.assert_close(bright[step], bright[0].roll((step * dy, step * dx), (0, 1)))
    assert clips.prompts == [
        prompt(int(digit), int(way), int(pace))
        for digit, way, pace in zip(clips.digits, clips.directions, clips.speeds, strict=True)
    ]
    assert prompt(7, 1, 1) == "a seven moving up and right, fast"
    assert prompt(8, None, 0) == "an eight moving on, slowly"
    assert prompt(0, None, None) == "a zero"
    assert prompt(0, 2, 1, is_anchored=True) == "a zero moving on and on, fast"
    assert prompt(0, None, None, is_anchored=True) == "a zero moving on and on"


def test_cuts_glow_from_the_start_and_tell_no_direction():
    clips = MovingDigits("validation", 40, 3, cuts=1.0).clips()
    assert clips.is_cut.all()
    assert not any(way in text.split() for text in clips.prompts for way in ("up", "down", "left", "right"))
    # The light of single frames that is no digit's: an afterglow can fill up to AFTERGLOW.
    dark = MovingDigits("validation", 40, 3, cuts=0.0).clips()
    faint = [((part.frames[:, 0] > -1) & (part.frames[:, 0] < -0.2)).float().mean() for part in (clips, dark)]
    assert faint[0] > 1.2 * faint[1]


def test_drifted_clips_come_back_to_the_digit_of_their_prompt():
    plain = MovingDigits("validation", 60, 16, cuts=0.5, seed=4).clips()
    clips = MovingDigits("validation", 60, 16, cuts=0.5, drifted=0.8, seed=4).clips()
    assert clips.prompts == plain.prompts
    differs = (clips.frames != plain.frames).flatten(2).any(-1)
    assert not differs[~clips.is_cut].any()
    is_astray = differs.any(-1)
    assert 0.6 < is_astray[clips.is_cut].float().mean() < 0.95
    assert differs[is_astray, 0].all()
    # An afterglow of what was astray stays for a few frames more, fainter and fainter.
    gap = (clips.frames - plain.frames).abs().flatten(2).amax(-1)[is_astray]
    assert gap[:, 0].mean() > 0.3
    assert gap[:, DRIFTED_FRAMES].max() < 2 * AFTERGLOW
    assert gap[:, DRIFTED_FRAMES + 4].max() < 2 * AFTERGLOW**5


def test_anchored_clips_come_back_to_the_digit_of_their_first_frame():
    plain = MovingDigits("validation", 80, 16, cuts=0.8, seed=4).clips()
    clips = MovingDigits("validation", 80, 16, cuts=0.8, anchored=0.5, drifted=0.8, seed=4).clips()
    assert 0.3 < clips.is_anchored[clips.is_cut].float().mean() < 0.7
    assert not clips.is_anchored[~clips.is_cut].any()
    assert [ON_AND_ON in text for text in clips.prompts] == clips.is_anchored.tolist()
    assert not clips.num_given[~clips.is_anchored].any()
    given = clips.num_given[clips.is_anchored]
    assert given.min() >= 2 and given.max() <= DRIFTED_FRAMES + 1
    # The first frame is the right digit where it began; with an afterglow, or, as a clip's beginning, without.
    anchors = clips.frames[clips.is_anchored, :1]
    begun = MovingDigits("validation", 80, 16, cuts=0.0, seed=4).clips().frames[clips.is_anchored, :1]
    bright = begun > 2 * AFTERGLOW - 1
    torch.testing.assert_close(anchors[bright], begun[bright])
    is_dark = (anchors == begun).flatten(1).all(1)
    assert 0.2 < is_dark.float().mean() < 0.8
    # What is to be learnt is as it would be without drift, but for an afterglow.
    gap = (clips.frames - plain.frames).abs().flatten(2).amax(-1)
    for row in clips.is_anchored.nonzero().squeeze(1):
        assert gap[row, clips.num_given[row] :].max() < 2 * AFTERGLOW
        assert gap[row, clips.num_given[row] + 4 :].max() < 2 * AFTERGLOW**5
    assert (gap[clips.is_anchored, 1] > 0.5).float().mean() > 0.4


def test_clips_depend_on_seed_and_number_alone():
    data = MovingDigits("train", 100, 4, seed=1)
    part = data.clips(torch.tensor([7, 3]))
    whole = data.clips()
    assert torch.equal(part.frames, whole.frames[[7, 3]])
    assert part.prompts == [whole.prompts[7], whole.prompts[3]]
    assert not torch.equal(part.frames, MovingDigits("train", 100, 4, seed=2).clips(torch.tensor([7, 3])).frames)


def test_every_prompt_is_understood():
    text = Words(WORDS, 8)
    for digit in range(len(NUMBERS)):
        for direction in (None, *range(len(DIRECTIONS))):
            for speed in (None, *range(len(SPEEDS))):
                text([prompt(digit, direction, speed), prompt(digit, direction, speed, is_anchored=True)])


@pytest.mark.parametrize(
    "settings", [{"num_clips": 0}, {"num_frames": 0}, {"cuts": 2.0}, {"drifted": -0.1}, {"anchored": 1.1}]
)
def test_mistakes(settings):
    with pytest.raises(ValueError, match="give positive numbers and shares"):
        MovingDigits(**settings)
