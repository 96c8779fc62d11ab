"""The command line: training to a model that generates; files; pages; how it answers mistakes."""

import json

import pytest
import torch

from tests.video.tiny import SEVEN, tiny_model
from video import recovery
from video.cli import main
from video.data import MovingDigits
from video.media import read_clip, write_clip
from video.model import VideoModel

TRAINING = ["--training.max_steps", "3", "--training.batch_size", "2", "--training.progress_bar", "false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_model().save(tmp_path_factory.mktemp("model")))


def test_train(tmp_path):
    autoencoder = ["--output", str(tmp_path / "autoencoder"), "--channels", "[4,4,4,4]", "--latent_channels", "2"]
    main(["train_autoencoder", *autoencoder, *TRAINING])
    arguments = ["--autoencoder", str(tmp_path / "autoencoder" / "autoencoder"), "--output", str(tmp_path / "flow")]
    small = ["--channels", "20", "--layers_per_block", "[1,1]", "--head_dim", "20", "--num_frames", "3"]
    small += ["--clips", "8"]
    main(["train", *arguments, *small, "--denoiser_layers", "1", *TRAINING])
    model = VideoModel.load(tmp_path / "flow" / "pipeline")
    assert model.generate([SEVEN], denoise="learned").shape == (1, 3, 1, 32, 32)
    weights = model.flow.state_dict()
    main(["train", *arguments, *small, "--denoiser_layers", "1", *TRAINING])  # over already: it stays as it is
    again = VideoModel.load(tmp_path / "flow" / "pipeline").flow.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    started = ["--output", str(tmp_path / "more"), "--initial", str(tmp_path / "flow" / "pipeline")]
    more = ["--num_frames", "3", "--clips", "8", "--stills", "2"]
    main(["train", "--autoencoder", arguments[1], *started, *more, *TRAINING])
    changed = VideoModel.load(tmp_path / "more" / "pipeline").flow.state_dict()
    assert weights.keys() == changed.keys() and any(not torch.equal(weights[name], changed[name]) for name in weights)


def test_recovery_clips_are_made_and_learnt(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recovery, "LARGEST_MISFIT", 100.0)  # a model that was never trained shows no digits
    clips = str(tmp_path / "clips.safetensors")
    main(["recovery", "--model", folder, "--output", clips, "--clips", "2", "--windows", "2"])
    assert "4 clips written to" in capsys.readouterr().out
    model = VideoModel.load(folder)
    arguments = ["--output", str(tmp_path / "flow"), "--autoencoder", f"{folder}/autoencoder", "--initial", folder]
    sizes = ["--num_frames", "4", "--clips", "3", "--stills", "2", "--more_layers", "1"]
    main(["train", *arguments, *sizes, "--recovery", f"[{clips}]", "--learn_denoiser", "false", *TRAINING])
    trained = VideoModel.load(tmp_path / "flow" / "pipeline")
    assert trained.flow.config == model.flow.config | {"layers_per_block": [1, 2]}
    with pytest.raises(SystemExit, match="recovery clips whose inputs are .* make them by a model of the same"):
        main(["train", *arguments, "--num_frames", "3", "--recovery", f"[{clips}]", *TRAINING])
    with pytest.raises(SystemExit, match="there are no recovery clips at none"):
        main(["train", *arguments, "--recovery", "[none]", *TRAINING])
    with pytest.raises(SystemExit, match="more_layers are added to an initial model"):
        main(["train", *arguments[:4], "--more_layers", "1", *TRAINING])


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
    model = VideoModel.load(folder)
    expected = -model.log_prob(clip.unsqueeze(0), [SEVEN]).item() / (4 * 2 * 4 * 4)
    assert values[-1] == pytest.approx(expected, abs=1e-3)


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


def test_evaluate(folder, tmp_path, capsys):
    main(["evaluate", "--model", folder, "--num_clips", "4", "--roll_outs", "0", "--output", str(tmp_path / "a.json")])
    figures = json.loads((tmp_path / "a.json").read_text())
    assert json.loads(capsys.readouterr().out) == figures
    assert 0 <= figures["likelihood"]["auroc_reversed"] <= 1


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["generate", "--prompt", "a horse", "--out", "a.mp4"], "unknown word 'horse'"),
        (["generate", "--prompt", SEVEN], "nothing is to be written"),
        (["generate", "--out", "a.gif", "--first-frame", "b.png", "--continue", "c.mp4"], "not both"),
        (["generate", "--out", "a.gif", "--frames", "9", "--overlap", "0"], "9 frames are more than the 4"),
        (["generate", "--out", "a.gif", "--first-frame", "none.png"], "there is no file none.png"),
        (["generate", "--out", "a.gif", "--decoding", "magic"], "decoding must be one of auto, sequential, jacobi"),
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
