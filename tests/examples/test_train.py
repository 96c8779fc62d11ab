"""The stages of training on moving digits, from the command line."""

import json

import pytest
import torch

from examples.moving_digits import recovery
from examples.moving_digits.__main__ import main
from examples.moving_digits.data import WORDS, MovingDigits
from examples.moving_digits.train import TEXT_LENGTH, train
from nflib.training import TrainingConfig
from tests.video.tiny import SEVEN, tiny_latents, tiny_model
from video.pipeline import Pipeline
from video.text import Words

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
    model = Pipeline.load(tmp_path / "flow" / "pipeline")
    assert model.generate([SEVEN], denoise="learned").shape == (1, 3, 1, 32, 32)
    weights = model.flow.state_dict()
    main(["train", *arguments, *small, "--denoiser_layers", "1", *TRAINING])  # over already: it stays as it is
    again = Pipeline.load(tmp_path / "flow" / "pipeline").flow.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    started = ["--output", str(tmp_path / "more"), "--initial", str(tmp_path / "flow" / "pipeline")]
    more = ["--num_frames", "3", "--clips", "8", "--stills", "2"]
    main(["train", "--autoencoder", arguments[1], *started, *more, *TRAINING])
    changed = Pipeline.load(tmp_path / "more" / "pipeline").flow.state_dict()
    assert weights.keys() == changed.keys() and any(not torch.equal(weights[name], changed[name]) for name in weights)


def test_recovery_clips_are_made_and_learnt(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(recovery, "LARGEST_MISFIT", 100.0)  # a model that was never trained shows no digits
    clips = str(tmp_path / "clips.safetensors")
    caplog.set_level("INFO")
    main(["recovery", "--model", folder, "--output", clips, "--clips", "2", "--windows", "2"])
    assert "4 clips written to" in caplog.text
    model = Pipeline.load(folder)
    arguments = ["--output", str(tmp_path / "flow"), "--autoencoder", f"{folder}/autoencoder", "--initial", folder]
    sizes = ["--num_frames", "4", "--clips", "3", "--stills", "2", "--more_layers", "1"]
    main(["train", *arguments, *sizes, "--recovery", f"[{clips}]", "--learn_denoiser", "false", *TRAINING])
    trained = Pipeline.load(tmp_path / "flow" / "pipeline")
    assert trained.flow.config == model.flow.config | {"layers_per_block": [1, 2]}
    with pytest.raises(SystemExit, match="clips whose inputs are .* make them by a model of the same"):
        main(["train", *arguments, "--num_frames", "3", "--recovery", f"[{clips}]", *TRAINING])
    with pytest.raises(SystemExit, match="there are no recovery clips at none"):
        main(["train", *arguments, "--recovery", "[none]", *TRAINING])
    with pytest.raises(SystemExit, match="more_layers are added to an initial model"):
        main(["train", *arguments[:4], "--more_layers", "1", *TRAINING])


def test_evaluate(folder, tmp_path, capsys):
    main(["evaluate", "--model", folder, "--num_clips", "4", "--roll_outs", "0", "--output", str(tmp_path / "a.json")])
    figures = json.loads((tmp_path / "a.json").read_text())
    assert json.loads(capsys.readouterr().out) == figures
    assert 0 <= figures["likelihood"]["auroc_reversed"] <= 1


def test_stills_are_first_frames_and_later_ones(tmp_path, monkeypatch):
    latents, text = tiny_latents(), Words(WORDS, TEXT_LENGTH)
    latents.autoencoder.save_pretrained(tmp_path / "autoencoder")
    learnt = {}

    def fit(flow, data, validation, **settings):
        learnt.update(data)

    monkeypatch.setattr("video.training.clips.fit", fit)
    sizes = {"num_frames": 2, "clips": 3, "stills": 4, "channels": 32, "layers_per_block": [1, 1]}
    train(tmp_path, str(tmp_path / "autoencoder"), TrainingConfig(max_steps=1, seed=5), **sizes)
    expected = MovingDigits("train", 12, 1, cuts=0.5, seed=7).clips()
    assert 0 < expected.is_cut.sum() < 12
    assert torch.equal(learnt["stills_context"].flatten(0, 1), text(expected.prompts))
    torch.testing.assert_close(learnt["stills"].flatten(0, 1), latents.encode(expected.frames).squeeze(1))


def test_mistakes(tmp_path):
    config = TrainingConfig(max_steps=1)
    with pytest.raises(ValueError, match="stills must be zero or more"):
        train(tmp_path, "none", config, stills=-1)
    with pytest.raises(ValueError, match="frames_shown must lie in 1 … num_frames"):
        train(tmp_path, "none", config, frames_shown=17)
    with pytest.raises(ValueError, match="more_layers are added to an initial model"):
        train(tmp_path, "none", config, more_layers=1)
    tiny_latents().autoencoder.save_pretrained(tmp_path / "autoencoder")
    for setting, answer in (("emphasis", "emphasis must be a positive"), ("context_noise", "context_noise must be")):
        with pytest.raises(ValueError, match=answer):
            train(tmp_path, str(tmp_path / "autoencoder"), config, clips=2, channels=32, **{setting: -0.1})
