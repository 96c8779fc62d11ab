"""The command line: training to a model that generates; files; pages; how it answers mistakes."""

import errno
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

from examples.moving_digits.data import MovingDigits
from tests.video.tiny import SEVEN, tiny_model
from video import commands
from video.commands import main, options
from video.media import read_clip, write_clip
from video.pipeline import Pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_model().save(tmp_path_factory.mktemp("model")))


def test_generate_and_likelihood(folder, tmp_path, capsys):
    out = tmp_path / "clip.mp4"
    main(["generate", "--model", folder, "--prompt", SEVEN, "--out", str(out), "--seed", "2"])
    clip = read_clip(out, (1, 32, 32))
    assert clip.shape == (4, 1, 32, 32)
    main(["generate", "--model", folder, "--prompt", SEVEN, "--out", str(out), "--seed", "2", "--decoding", "jacobi"])
    torch.testing.assert_close(read_clip(out, (1, 32, 32)), clip, atol=0.02, rtol=0)
    main(["likelihood", str(out), "--model", folder, "--prompt", SEVEN])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["frame", "nats", "per", "dimension"]
    values = [float(line.split()[1]) for line in lines[1:]]
    assert values[-1] == pytest.approx(sum(values[:-1]) / 4, abs=1e-3)
    model = Pipeline.load(folder)
    expected = -model.log_prob(clip.unsqueeze(0), [SEVEN]).item() / (4 * 2 * 4 * 4)
    assert values[-1] == pytest.approx(expected, abs=1e-3)


def test_videos_of_odd_sides(tmp_path):
    """Enlarged until their sides are even, as codecs take them."""
    pieces = [torch.zeros(1, 2, 3, 31, 25)]
    for name, sides in (("a.mp4", (6 * 31, 6 * 25)), ("a.gif", (5 * 31, 5 * 25))):
        enlarged = options.OutputOptions(out=tmp_path / name)
        enlarged.write(tiny_model(), pieces, [""], seed=0, heading={})
        assert read_clip(tmp_path / name).shape[2:] == sides


def test_a_folder_that_cannot_be_written_is_told_before_the_work(folder, tmp_path, monkeypatch):
    def refuse(dir, **options):
        raise OSError(errno.EROFS, "Read-only file system", str(dir))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    monkeypatch.setattr("video.pipeline.Pipeline.load", lambda *arguments: pytest.fail("not reached"))
    for command in (["generate", "--out", str(tmp_path / "a.png")], ["generate", "--gallery", str(tmp_path / "a.html")],
                    ["evaluate", "--data", str(tmp_path), "--output", str(tmp_path / "page")]):  # fmt: skip
        with pytest.raises(SystemExit, match=r"error: .*cannot write into .*Read-only"):
            main([*command, "--model", folder])


def test_image_to_video_and_continuation(folder, tmp_path):
    frames = MovingDigits("validation", 1, 6).clips().frames[0]
    image = write_clip(frames[:1], tmp_path / "image.png", enlarge=2)
    main(["generate", "--model", folder, "--first-frame", str(image), "--out", str(tmp_path / "a.gif")])
    made = read_clip(tmp_path / "a.gif", (1, 32, 32))
    torch.testing.assert_close(made[:1], frames[:1], atol=0.05, rtol=0)
    video = write_clip(frames, tmp_path / "given.gif")
    for frames_wanted, length in (([], 10), (["--frames", "9"], 9)):
        arguments = ["--model", folder, "--continue", str(video), "--out", str(tmp_path / "b.gif")]
        main(["generate", *arguments, *frames_wanted])
        assert len(read_clip(tmp_path / "b.gif")) == length


@pytest.mark.parametrize("text", [SEVEN + "; a two", "a: b", "[a, b]", "null", "3", "", "- a"])
def test_prompts_are_text(folder, text, monkeypatch):
    """Whatever they mean in YAML, one by one, or after an equals sign."""
    taken = []
    monkeypatch.setitem(commands.COMMANDS, "generate", lambda prompt=None: taken.extend(prompt))
    commands.COMMANDS["generate"].__annotations__ = {"prompt": list[str] | None}
    main(["generate", "--prompt", text, "--prompt", "a two", f"--prompt={text}"])
    assert taken == [text, "a two", text]


@pytest.mark.parametrize("prompts", ['"' + SEVEN + '"', f"['{SEVEN}']", f"['{SEVEN}', '3']", "7", "null"])
def test_options_of_a_file_are_those_of_the_command_line(prompts, monkeypatch, tmp_path):
    taken = {}

    def generate(
        prompt: list[str] | None = None, continue_clip: Path | None = None, num_clips: int = 1, seconds: float = 1.0
    ) -> None:
        """Generate."""
        taken.update(locals())

    monkeypatch.setattr(generate, "__annotations__", get_type_hints(generate))
    monkeypatch.setitem(commands.COMMANDS, "generate", generate)
    (tmp_path / "own.yaml").write_text(f"prompt: {prompts}\ncontinue: a.mp4\nnum-clips: 3\n", encoding="utf-8-sig")
    expected = {'"': [SEVEN], "7": ["7"], "n": None}.get(prompts[0], [SEVEN, "3"] if "3" in prompts else [SEVEN])
    for given in (["--config", str(tmp_path / "own.yaml")], [f"--config={tmp_path / 'own.yaml'}"]):
        main(["generate", *given, "--seconds", "2"])
        assert {name: taken[name] for name in ("prompt", "continue_clip", "num_clips", "seconds")} == {
            "prompt": expected,
            "continue_clip": Path("a.mp4"),
            "num_clips": 3,
            "seconds": 2.0,
        }


def test_files_of_options_that_are_none(tmp_path):
    (tmp_path / "own.yaml").write_text("nonesuch: 3\n")
    for name, answer in (("own.yaml", "nonesuch"), ("none.yaml", "none.yaml")):
        with pytest.raises(SystemExit, match=f"^error: .*{answer}.*; --help says what there is"):
            main(["generate", "--config", str(tmp_path / name)])


def test_a_file_of_prompts(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{SEVEN}\n\n a two \n", encoding="utf-8-sig")
    arguments = ["--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "a.gif")]
    main(["generate", "--model", folder, *arguments, "--prompt", "a six"])
    assert {path.name for path in tmp_path.glob("*.gif")} == {"a-1.gif", "a-2.gif", "a-3.gif"}
    assert options.read_prompts(["a six"], tmp_path / "prompts.txt") == ["a six", SEVEN, "a two"]
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(ValueError, match="has no prompt"):
        options.read_prompts(None, tmp_path / "none.txt")
    (tmp_path / "none.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="no text in UTF-8"):
        options.read_prompts(None, tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["generate", "--prompt", "a horse", "--out", "a.mp4"], "unknown word 'horse'"),
        (["generate", "--prompt", SEVEN], "nothing is to be written"),
        (["generate", "--out", "a.gif", "--first-frame", "b.png", "--continue", "c.mp4"], "not both"),
        (["generate", "--out", "a.png", "--gallery", "a.png"], "a.png is to be a page: let its name end in .html"),
        (["generate", "--out", "a.gif", "--frames", "9", "--overlap", "0"], "9 frames are more than the 4"),
        (["generate", "--out", "a.gif", "--first-frame", "none.png"], "there is no file none.png"),
        (["generate", "--out", "a.gif", "--decoding", "magic"], "decoding must be one of auto, sequential, jacobi"),
        (["generate", "--out", "a.gif", "--prompts", "none.txt"], "there is no file none.txt"),
        (["generate", "--out", "a.gif", "--prompt", SEVEN, "--guidance", "1e30"], "1 of 1 clips overflow"),
        (
            ["generate", "--out", "a.gif", "--prompt", SEVEN, "--guidance", "1e30", "--candidates", "2"],
            "clips overflow",
        ),
        (["likelihood", "none.mp4", "--prompt", "a", "--prompt", "b"], "given one prompt, got 2"),
        (["likelihood", "none.mp4"], "there is no file none.mp4"),
    ],
)
def test_mistakes(folder, tmp_path, monkeypatch, arguments, answer):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--model", folder])
    assert answer in str(stop.value) and str(stop.value).startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_model_of_another_kind(folder, tmp_path):
    with pytest.raises(SystemExit, match=r"there is no model\.json"):
        main(["generate", "--model", str(tmp_path), "--prompt", SEVEN, "--out", str(tmp_path / "a.mp4")])
