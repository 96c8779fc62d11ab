"""Bad input on the command line: one sentence on standard error, an exit status, nothing written."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from examples.moving_digits.data import MovingDigits
from tests.video.tiny import tiny_latents, tiny_model
from video.commands import main
from video.media import write_clip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, and files that are good for nothing."""
    folder = tmp_path_factory.mktemp("files")
    tiny_model().save(folder / "model")
    clip = MovingDigits("validation", 1, 6).clips().frames[0]
    whole = write_clip(clip, folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (folder / "text.mp4").write_text("no video at all" * 100)
    for name in ("empty.mp4", "empty.gif", "empty.png"):
        (folder / name).touch()
    whole = write_clip(clip, folder / "whole.gif").read_bytes()
    (folder / "cut.gif").write_bytes(whole[:40])
    (folder / "clip.doc").write_text("a letter")
    return folder


def refused(arguments, files):
    """What the command line says, having written nothing."""
    before = sorted(files.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main([part.format(folder=files) for part in arguments])
    message = str(stop.value)
    assert message.startswith("error: ") and "\n" not in message and len(message) < 400
    assert sorted(files.rglob("*")) == before
    return message


MODEL = ["--model", "{folder}/model"]
OUT = ["--out", "{folder}/out.gif"]


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--continue", "{folder}/cut.mp4"], "cannot be decoded"),
        (["--continue", "{folder}/text.mp4"], "cannot be decoded"),
        (["--continue", "{folder}/empty.mp4"], "empty.mp4 is empty"),
        (["--continue", "{folder}/cut.gif"], "cannot be decoded"),
        (["--continue", "{folder}/clip.doc"], "cannot be decoded"),
        (["--first-frame", "{folder}/empty.png"], "empty.png is empty"),
        (["--first-frame", "{folder}"], "there is no file"),
        (["--prompt", "a seven moving sideways"], "unknown word 'sideways'"),
        (["--prompt", "a a a a a a a a a a"], "has 10 words; at most 8"),
        (["--frames", "20", "--overlap", "0"], "20 frames are more than the 4 of one window"),
        (["--frames", "0"], "clips of 0 frames"),
        (["--num-clips", "0"], "num_clips, of each prompt, must be a positive number, got 0"),
        (["--guidance", "-1"], "must be zero or positive"),
        (["--out", "{folder}/out.doc"], "ends in none of"),
        (["--out", "{folder}/none/out.gif"], "there is no folder"),
        (["--gallery", "{folder}/none/page.html"], "there is no folder"),
        (["--gallery", "{folder}"], "is a folder; name a file"),
        (["--device", "abacus"], "abacus"),
        (["--model", "digits", "--aspect", "16:9"], "makes images of 8 × 8 alone"),
    ],
)
def test_generate(files, arguments, answer):
    out = [] if "--out" in arguments else OUT
    assert answer in refused(["generate", *MODEL, *out, *arguments], files)


@pytest.mark.parametrize("name", ["cut.mp4", "text.mp4", "empty.gif", "none.mp4"])
@pytest.mark.parametrize("command", ["likelihood", "edit"])
def test_clips_of_other_commands(files, command, name):
    out = OUT if command == "edit" else []
    assert name in refused([command, f"{{folder}}/{name}", *MODEL, *out], files)


def test_missing_codec(files, monkeypatch):
    monkeypatch.setattr("video.media.CODECS", ("nonesuch",))
    answer = refused(["generate", *MODEL, "--out", "{folder}/out.mp4"], files)
    assert "has no encoder nonesuch; choose a .gif" in answer


@pytest.fixture
def copied(files, tmp_path):
    """A copy of the model, to be spoiled."""
    return shutil.copytree(files / "model", tmp_path / "model")


def rewrite(path, change):
    """Changes keys of a document, or puts another in its place."""
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **change} if isinstance(change, dict) else change))


def answer_of(model):
    return refused(["generate", "--model", str(model), *OUT[:1], str(model / "out.gif")], model)


def test_weights_of_another_configuration(copied):
    path = copied / "flow" / "config.json"
    document = json.loads(path.read_text())
    document["config"]["channels"] = 40
    path.write_text(json.dumps(document))
    assert "model.safetensors" in answer_of(copied) or "configuration" in answer_of(copied)


def test_autoencoder_of_another_model(copied):
    tiny_latents(latent_channels=3).autoencoder.save_pretrained(copied / "autoencoder")
    assert "is inconsistent" in answer_of(copied)


def test_vocabulary_of_another_model(copied):
    path = copied / "text" / "vocabulary.json"
    rewrite(path, {"words": json.loads(path.read_text())["words"][:-1]})
    assert "is inconsistent" in answer_of(copied)


@pytest.mark.parametrize("part", ["model.json", "flow/config.json", "flow/model.safetensors", "text/vocabulary.json"])
def test_damaged_model(copied, part):
    path = copied / part
    path.write_bytes(path.read_bytes()[:-20])
    assert "damaged" in answer_of(copied)


@pytest.mark.parametrize(
    "change",
    [
        {"noise": -1},
        {"noise": float("nan")},
        {"noise": 1e9},
        {"frame_rate": 0},
        {"frame_rate": float("inf")},
        {"later_scale": 0},
        {"clip_shape": [4, 1, 32]},
        {"clip_shape": [4, 1, 32, -32]},
        {"clip_shape": [4, 1, 32, 32.5]},
        {"clip_shape": None},
        {"later": ["(", ""]},
        {"later": ["a", "\\2"]},
        {"anchored": "a"},
        [],
        "text",
        {"noise": None},
    ],
    ids=str,
)
def test_settings_that_no_model_has(copied, change):
    rewrite(copied / "model.json", change)
    assert "model.json is damaged" in answer_of(copied)


@pytest.mark.parametrize("change", [{"length": 1e12}, {"length": 10**12}, {"length": "8"}, {"words": "abc"}, [], 3])
def test_vocabularies_that_are_none(copied, change):
    rewrite(copied / "text" / "vocabulary.json", change)
    assert "vocabulary.json is damaged" in answer_of(copied)


def test_no_traceback(files):
    """As a user sees it."""
    command = [sys.executable, "-m", "video", "likelihood", str(files / "cut.mp4"), "--model", str(files / "model")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900, env=os.environ, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in ended.stderr
    assert not ended.stdout
