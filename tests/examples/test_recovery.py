"""Clips that a model begins and the truth ends."""

import pytest
import torch

from examples.moving_digits import recovery
from examples.moving_digits.data import ROOM, MovingDigits, bounced, handwriting, light, light_centres, velocities
from examples.moving_digits.recovery import fitted_motion, load_recovery_clips, nearest_handwriting
from tests.video.tiny import tiny_model


def test_the_motion_of_true_clips_is_found():
    clips = MovingDigits("train", 40, 8, cuts=0.0, seed=3).clips()
    velocity = velocities(clips.directions, clips.speeds)
    position, now, misfit = fitted_motion(light_centres(clips.frames), clips.images, -velocity)
    assert misfit.max() < 0.1
    # What is fitted goes on as the clip does, whichever the signs that it was given.
    longer = MovingDigits("train", 40, 16, cuts=0.0, seed=3).clips()
    predicted = bounced(position, now, torch.arange(1, 9)) + light_centres(2 * clips.images[:, None, None] - 1)
    torch.testing.assert_close(predicted, light_centres(longer.frames)[:, 8:], atol=0.1, rtol=0)
    assert position.min() >= 0 and position.max() <= ROOM


def test_a_motion_that_is_none_misfits():
    clips = MovingDigits("train", 10, 8, cuts=0.0, seed=3).clips()
    centres = light_centres(clips.frames)[:, torch.tensor([0, 7, 1, 6, 2, 5, 3, 4])]
    assert (fitted_motion(centres, clips.images, velocities(clips.directions, clips.speeds))[2] > 1).all()


def test_the_nearest_handwriting_is_the_one_that_is_shown():
    clips = MovingDigits("train", 20, 1, cuts=0.0, seed=4).clips()
    corners = (light_centres(clips.frames) - light_centres(2 * clips.images[:, None, None] - 1)).squeeze(1).round()
    images, positions = nearest_handwriting(light(clips.frames).squeeze(1), corners.long() + 1, clips.digits)
    torch.testing.assert_close(images, clips.images)
    torch.testing.assert_close(positions, corners.long())


def test_the_nearest_handwriting_is_of_the_digit_asked_for():
    clips = MovingDigits("train", 20, 1, cuts=0.0, seed=4).clips()
    wanted = (clips.digits + 1) % 10
    images, _ = nearest_handwriting(light(clips.frames).squeeze(1), torch.full((20, 2), 5), wanted)
    known, labels = handwriting("train")
    for image, digit in zip(images, wanted, strict=True):
        assert (known[labels == digit] == image).flatten(1).all(1).any()


@pytest.fixture(params=[False, True], ids=["plain", "anchored"])
def model(request):
    return tiny_model(4, is_anchored=request.param)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "made" / "clips.safetensors"


@pytest.fixture
def clips(model, path, tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "LARGEST_MISFIT", 100.0)  # a model that was never trained shows no digits
    return recovery.recovery(path, model.save(tmp_path / "model"), 3, 2, seed=1, batch_size=2)


def test_they_begin_as_drawn_and_end_as_is_true(model, clips):
    assert {name: tuple(part.shape) for name, part in clips.items()} == {
        "inputs": (6, 4, 2, 4, 4),
        "context": (6, 8, model.text.channels),
        "num_given": (6,),
        "is_anchored": (6,),
    }
    # Of the windows of two clips, then those of the third.
    assert clips["num_given"].tolist() == [1, 2, 2, 3, 1, 2]
    asked = MovingDigits("train", 3, 1, cuts=0.0, seed=1).clips(torch.arange(2))
    drawn = model.draw(asked.prompts, 6, asked.frames, overlap=2, seed=1)
    for row, given in enumerate(clips["num_given"][:4]):
        own = drawn.windows[row // 2].latents[row % 2]
        torch.testing.assert_close(clips["inputs"][row, :given], own[:given])
        assert not torch.allclose(clips["inputs"][row, given:], own[given:])
    torch.testing.assert_close(clips["context"][2:4], drawn.windows[1].context)
    is_anchored = model.settings.anchored is not None
    assert clips["is_anchored"].tolist() == [False, False, is_anchored, is_anchored, False, is_anchored]
    if is_anchored:
        torch.testing.assert_close(clips["inputs"][2:4, 0], clips["inputs"][:2, 0])


def test_they_are_saved_and_loaded(clips, path):
    both = load_recovery_clips([path, path])
    torch.testing.assert_close(both["inputs"], torch.cat([clips["inputs"]] * 2))


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match="one clip and one window at least, got 0 and 4"):
        recovery.recovery(tmp_path / "a.safetensors", clips=0)
    with pytest.raises(ValueError, match="batch_size must be a positive number, got 0"):
        recovery.recovery(tmp_path / "a.safetensors", batch_size=0)
    with pytest.raises(ValueError, match="is a folder: name a .safetensors file"):
        recovery.recovery(tmp_path)
    with pytest.raises(FileNotFoundError, match="python -m examples.moving_digits recovery"):
        load_recovery_clips([tmp_path / "none.safetensors"])
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is damaged or no file of recovery clips"):
        load_recovery_clips([tmp_path / "bad.safetensors"])
