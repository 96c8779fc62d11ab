"""The judges of moving digits, on clips whose truth is known."""

import json

import pytest
import torch

from examples.moving_digits.data import DIRECTIONS, MovingDigits
from examples.moving_digits.evaluate import (
    DigitClassifier,
    crops,
    evaluate,
    light,
    likelihoods,
    motion,
    reference_fidelity,
    sharpness,
    spoiled,
)
from tests.video.tiny import tiny_model


@pytest.fixture(scope="module")
def clips():
    return MovingDigits("validation", 100, 12, cuts=0.0, seed=3).clips()


def test_motion_is_found(clips):
    direction, speed = motion(clips.frames)
    assert torch.equal(direction, clips.directions)
    assert torch.equal(speed, clips.speeds)
    still = clips.frames[:, :1].expand(-1, 12, -1, -1, -1)
    assert motion(still)[0].eq(-1).all() and motion(still)[1].eq(-1).all()
    opposite = motion(clips.frames[:, :6].flip(1))[0]
    assert torch.equal((opposite - clips.directions) % len(DIRECTIONS), torch.full((100,), 4))


def test_crops_do_not_depend_on_the_place(clips):
    frames = light(clips.frames[:, :1]).flatten(0, 1)
    moved = frames.roll((1, 1), (1, 2))
    inside = (frames[:, -1].sum(-1) == 0) & (frames[:, :, -1].sum(-1) == 0)
    difference = (crops(frames) - crops(moved))[inside].abs().amax((1, 2))
    assert float((difference == 0).float().mean()) > 0.8


def test_digits_are_read(clips):
    read = DigitClassifier(600)(clips.frames)
    assert float((read == clips.digits).float().mean()) >= 0.95
    figures = reference_fidelity(50)
    assert figures["direction"] == figures["speed"] == 1
    assert figures["digit"] >= 0.95


def test_sharpness():
    edge = torch.zeros(1, 1, 4, 4)
    edge[..., 2:] = 1
    assert float(sharpness(edge)) == pytest.approx(1 / 3)
    assert float(sharpness(torch.ones(1, 1, 4, 4))) == 0


def test_spoiled(clips):
    part = clips._replace(frames=clips.frames[:20], digits=clips.digits[:20])
    spoilt = spoiled(part)
    assert torch.equal(spoilt["reversed"][:, 0], part.frames[:, -1])
    assert torch.equal(spoilt["spliced"][:, :6], part.frames[:, :6])
    assert (spoilt["spliced"][:, 6:] != part.frames[:, 6:]).flatten(1).any(1).all()
    torch.testing.assert_close(spoilt["shuffled"].sum(1), part.frames.sum(1))
    with pytest.raises(ValueError, match="no other to splice in"):
        spoiled(clips._replace(digits=torch.zeros(100)))


def test_evaluate_a_model_that_knows_nothing(tmp_path):
    model = tiny_model()
    folder, output = model.save(tmp_path / "model"), tmp_path / "figures.json"
    figures = evaluate(output, folder, num_clips=8, roll_outs=2)
    assert {name for name in figures if name.startswith("guidance")} == {
        f"guidance {weight}, denoise {denoise}" for weight in (0, 1) for denoise in ("score", "none", "learned")
    }
    assert figures["roll_out"]["sharpness_ratio"] > 0
    length = model.window
    assert list(figures["roll_out"]["digits"]) == list(range(length, 4 * length + 1, length // 2))
    alone = evaluate(output, folder, num_clips=0, roll_outs=2)
    assert set(alone) == {"settings", "roll_out"} and alone["roll_out"] == figures["roll_out"]
    with pytest.raises(ValueError, match="overlap must lie in"):
        evaluate(output, folder, num_clips=8, overlap=length)
    kept = json.loads(output.read_text())  # what was found before
    assert kept["likelihood"] == figures["likelihood"] and "roll_out" not in kept
    assert figures["likelihood"]["bits_per_dim"] == pytest.approx(figures["likelihood"]["nats_per_dim"] / 0.6931472)
    assert likelihoods(model, 8, batch_size=3)["nats_per_dim"] == pytest.approx(
        figures["likelihood"]["nats_per_dim"], abs=0.1
    )


def test_mistakes_are_told_before_the_work(tmp_path):
    with pytest.raises(ValueError, match="candidates must be a positive number, got 0"):
        evaluate(tmp_path / "figures.json", candidates=0)
    with pytest.raises(ValueError, match="is a folder: name a JSON file"):
        evaluate(tmp_path)
