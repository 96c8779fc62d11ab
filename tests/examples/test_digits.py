"""Handwritten digits: their parts and files, and the shipped flow of them, whose bits are those on record."""

import json

import pytest
import torch
from sklearn.svm import SVC

from examples.digits.__main__ import main
from examples.digits.data import LEVELS, NAMES, parts, write
from video.data import Bucket, ClipFolder, read_folder
from video.latents.levels import snapped
from video.parts import MOVING_DIGITS, SHIPPED
from video.pipeline import Pipeline

DIGITS = SHIPPED / "digits"


@pytest.fixture(scope="module")
def model():
    return Pipeline.load("digits")


def test_parts_share_no_picture_and_have_all_classes():
    found = parts()
    assert [len(part.labels) for part in found.values()] == [300, 200, 1297]
    assert found["test"].labels.bincount().tolist() == [30] * 10
    rows = torch.cat([torch.cat([part.levels, part.labels[:, None]], 1) for part in found.values()])
    assert len(rows.unique(dim=0)) == len(rows)


def test_files_hold_the_levels(tmp_path):
    write(tmp_path)
    listing = read_folder(tmp_path / "test")
    clips = ClipFolder(listing, [Bucket(1, 8, 8)], channels=1).clips(torch.arange(len(listing)))
    test = parts()["test"]
    read = snapped(clips.frames, LEVELS)
    order = [int(sample.name.split("-")[-1].split(".")[0]) for sample in listing.samples]
    assert torch.equal(read, test.pictures()[order])
    assert [listing.prompt(number) for number in range(3)] == [NAMES[test.labels[row]] for row in order[:3]]


def test_shipped_size():
    assert sum(path.stat().st_size for path in DIGITS.rglob("*") if path.is_file()) < 3e6


def test_bits_on_record(tmp_path):
    """Bits of the test part, by the command that recorded them."""
    main(["evaluate", "--model", "digits", "--output", str(tmp_path / "found.json")])
    found, record = (json.loads(path.read_text()) for path in (tmp_path / "found.json", DIGITS / "evaluation.json"))
    assert found.keys() == record.keys()
    assert found["bits_per_dimension"] == pytest.approx(record["bits_per_dimension"], abs=1e-3)
    for name in set(record) - {"bits_per_dimension"}:
        assert found[name] == pytest.approx(record[name], abs=4e-3)


def test_samples_are_of_their_class(model):
    """By a support vector machine, which reads 0.98 of the test part right."""
    train = parts()["train"]
    machine = SVC(C=10.0, gamma=0.001).fit(train.levels.numpy(), train.labels.numpy())
    labels = torch.arange(10).repeat_interleave(10)
    made = model.generate([NAMES[label] for label in labels], seed=0)
    assert made.shape == (100, 1, 1, 8, 8) and torch.equal(snapped(made, LEVELS), made)
    read = torch.from_numpy(machine.predict(((made.flatten(1) + 1) * (LEVELS - 1) / 2).numpy()))
    assert float((read == labels).float().mean()) > 0.85


def test_moving_digits_have_a_name_too():
    assert Pipeline.load(MOVING_DIGITS).settings == Pipeline.load().settings


def test_another_model_is_refused():
    with pytest.raises(SystemExit, match="17 levels"):
        main(["evaluate", "--model", MOVING_DIGITS])
    with pytest.raises(SystemExit, match="draws must be a positive number, got 0"):
        main(["evaluate", "--model", "digits", "--draws", "0"])
