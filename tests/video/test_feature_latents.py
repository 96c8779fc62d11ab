"""Latents of the features of a vision encoder: which features, training, folders, and a flow on them by commands."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
)

from nflib.training import TrainingConfig
from nflib.training.data import TensorSource
from tests.quiet import QUIET, QUIET_OPTIONS
from tests.video.files import write_image
from video.commands import main
from video.latents import FeatureLatents, load_latents
from video.latents.vision import PatchFeatures, load_patch_features
from video.pipeline import Pipeline
from video.training import AutoencoderOptions, NoisyReconstruction, train_autoencoder

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 8}
FAMILIES = {
    "vit": (ViTModel, ViTConfig, 1),
    "registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig, 5),
    "siglip": (SiglipVisionModel, SiglipVisionConfig, 0),
    "clip": (CLIPVisionModel, CLIPVisionConfig, 1),
}
TINY = {"latent_channels": 2, "decoder_channels": 8, "decoder_layers": 1}


def save_encoder(folder, family="registers", mean=(0.2, 0.4, 0.6)):
    torch.manual_seed(5)
    model, config, _ = FAMILIES[family]
    model(config(**SIZES, patch_size=4)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": [0.5, 0.25, 0.5]}))
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def latents(encoder):
    return AutoencoderOptions(features=str(encoder), **TINY).latents(3, 0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_features_are_those_of_patches(family, tmp_path):
    """As transformers gives them of images that are normalised by hand, without the tokens before the patches."""
    vision = load_patch_features(save_encoder(tmp_path, family))
    frames = torch.rand(2, 3, 8, 8) * 2 - 1
    mean, std = torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1), torch.tensor([0.5, 0.25, 0.5]).view(3, 1, 1)
    tokens = vision.tower(pixel_values=((frames + 1) / 2 - mean) / std).last_hidden_state
    model, _, extra = FAMILIES[family]
    assert type(vision.tower).__name__ in (model.__name__, model.__name__.replace("Model", "Transformer"))
    assert tokens.shape[1] == 4 + extra
    expected = torch.stack([tokens[:, extra + k] for k in range(4)], -1).unflatten(-1, (2, 2))
    torch.testing.assert_close(vision(frames, 2, 2), expected)
    assert vision(frames, 3, 5).shape == (2, 8, 3, 5)  # resized, positions interpolated
    grey = frames[:, :1]
    torch.testing.assert_close(vision(grey, 2, 2), vision(grey.expand(-1, 3, -1, -1), 2, 2))
    vision.save(tmp_path / "again")
    torch.testing.assert_close(load_patch_features(tmp_path / "again")(frames, 2, 2), expected)


def test_without_a_processor(tmp_path):
    (save_encoder(tmp_path, "vit") / "preprocessor_config.json").unlink()
    vision = load_patch_features(tmp_path)
    assert float(vision.mean.mean()) == float(vision.std.mean()) == 0.5
    unscaled = PatchFeatures(vision.tower, {"do_normalize": False, "image_mean": [0.1] * 3})
    assert float(unscaled.mean.mean()) == 0 and float(unscaled.std.mean()) == 1


def test_gradient_reaches_all_but_the_vision_encoder(latents):
    frames = torch.rand(4, 3, 8, 12) * 2 - 1
    objective = NoisyReconstruction(latents)
    loss, figures = objective(latents.autoencoder, {"inputs": frames}, torch.Generator().manual_seed(0))
    assert set(figures) == {"squared_error", "feature_error", "feature_cosine_error", "divergence"}
    loss.backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in latents.autoencoder.parameters())
    assert all(value.grad is None and not value.requires_grad for value in latents.vision.parameters())
    latents.zero_grad()
    latents.freeze_encoder()
    objective(latents.autoencoder, {"inputs": frames}, torch.Generator().manual_seed(0))[0].backward()
    assert latents.autoencoder.to_posterior.weight.grad is None
    assert latents.autoencoder.feature_decoder.proj_in.weight.grad is not None


@torch.no_grad()
def test_scale_and_folder(latents, tmp_path):
    frames = torch.rand(32, 3, 8, 12) * 2 - 1
    latents.begin_training(frames)
    inputs = latents.encoder_inputs(frames)
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(inputs.std((0, 2, 3)), torch.ones(8), atol=1e-4, rtol=0)
    latents.eval().set_scale(frames)
    latents.save(tmp_path)
    loaded = load_latents(tmp_path)
    assert type(loaded) is FeatureLatents and not any(value.requires_grad for value in loaded.parameters())
    clips = frames.unflatten(0, (4, 8))
    z = loaded.encode(clips)
    assert z.shape == (4, 8, 2, 2, 3) == (4, *loaded.latent_shape((8, 3, 8, 12)))
    torch.testing.assert_close(z.mean((0, 1, 3, 4)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 1, 3, 4)), torch.ones(2), atol=1e-4, rtol=0)
    assert torch.equal(z, loaded.encode(clips))
    torch.testing.assert_close(z, latents.encode(clips))
    decoded = loaded.decode(z)
    assert decoded.shape == clips.shape
    raw = latents.posterior(inputs).mode()
    torch.testing.assert_close(decoded.flatten(0, 1), latents.decode_frames(raw).clamp(-1, 1), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="multiples of 4"):
        loaded.encode(clips[..., :10])


def test_training_resumes_and_goes_on_from_another(encoder, tmp_path):
    generator = torch.Generator().manual_seed(0)
    frames, validation = (
        TensorSource({"inputs": torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1}) for count in (16, 4)
    )

    def train(name, steps, stop=None, **options):
        def stopping(state):
            state.stop = state.step == stop

        config = TrainingConfig(batch_size=4, max_steps=steps, **QUIET)
        chosen = AutoencoderOptions(**options)
        latents = chosen.latents(3, 0)
        train_autoencoder(latents, frames, validation, tmp_path / name, config, chosen, callbacks=[stopping])
        return load_latents(tmp_path / name / "autoencoder")

    new = {"features": str(encoder), **TINY}
    whole = train("whole", 6, **new)
    train("stopped", 6, stop=3, **new)
    resumed = train("stopped", 6, **new)
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    original = load_patch_features(encoder).tower.state_dict()
    assert all(torch.equal(value, whole.vision.tower.state_dict()[name]) for name, value in original.items())
    saved = (tmp_path / "whole" / "checkpoints").glob("step-*/weights.safetensors")
    assert all(path.stat().st_size < 1e5 for path in saved)  # without the vision encoder
    initial = str(tmp_path / "whole" / "autoencoder")
    tuned = train("tuned", 3, initial=initial, decoder_only=True)
    clips = torch.rand(2, 1, 3, 8, 8)
    z = whole.encode(clips)
    assert torch.equal(z, tuned.encode(clips)) and not torch.equal(whole.decode(z), tuned.decode(z))


def test_a_flow_on_its_latents(encoder, tmp_path, caplog):
    """From pictures to samples by three commands, at another size than the vision encoder's own."""
    noise = np.random.default_rng(0)
    for number in range(24):
        write_image(
            tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png", noise.integers(0, 255, (12, 12, 3), np.uint8)
        )
    data = ["--data", str(tmp_path / "pictures"), "--size", "12"]
    steps = ["--training.max_steps", "2", "--training.batch_size", "4", "--training.validation_interval", "2"]
    steps += QUIET_OPTIONS
    tiny = ["--latent_channels", "2", "--decoder_channels", "8", "--decoder_layers", "1", "--patch_pixels", "6"]
    run, flow = tmp_path / "autoencoder", tmp_path / "flow"
    with caplog.at_level("INFO"):
        main(["train_autoencoder", "--features", str(encoder), *data, "--output", str(run), *tiny, *steps])
    assert "PSNR" in caplog.text and "feature cosine error" in caplog.text
    tiny = ["--channels", "20", "--head_dim", "20", "--layers_per_block", "[1, 1]", "--samples", "0"]
    main(["train", *data, "--autoencoder", str(run), "--output", str(flow), *tiny, *steps])
    main(["generate", "--model", str(flow / "pipeline"), "--prompt", "a", "--out", str(tmp_path / "a.png")])
    pipeline = Pipeline.load(flow / "pipeline")
    assert type(pipeline.latents) is FeatureLatents and pipeline.flow.event_shape[-3:] == (2, 2, 2)
    with pytest.raises(SystemExit) as error:
        main(["train_autoencoder", "--features", str(encoder), *data, "--output", str(run), *steps])
    assert "made with another latent_channels" in str(error.value)


def test_mistakes(encoder, tmp_path):
    def latents(in_channels=3, **options):
        return AutoencoderOptions(**options).latents(in_channels, 0)

    with pytest.raises(FileNotFoundError, match="no vision encoder can be read"):
        latents(features=str(tmp_path / "nowhere"))
    text = T5EncoderModel(T5Config(vocab_size=4, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    text.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="takes no pictures"):
        latents(features=str(tmp_path / "text"))
    SwinModel(SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2])).save_pretrained(
        tmp_path / "maps"
    )
    with pytest.raises(ValueError, match="gives no features of patches"):
        latents(features=str(tmp_path / "maps"))
    with pytest.raises(ValueError, match="takes frames of 3 channels, not of 4"):
        latents(4, features=str(encoder))
    with pytest.raises(ValueError, match="has its own features, latent_channels: leave features, latent_channels out"):
        latents(features=str(encoder), latent_channels=4, initial=str(encoder))
    with pytest.raises(ValueError, match="has its own channels: leave channels out, or initial"):
        latents(channels=[4, 4], initial=str(encoder))
    with pytest.raises(ValueError, match="decoder_layers: only of an autoencoder of features"):
        latents(decoder_layers=2)
    with pytest.raises(ValueError, match="channels: only of an AutoencoderKL"):
        latents(features=str(encoder), channels=[4, 4])
    with pytest.raises(ValueError, match="multiple of 4"):
        latents(features=str(encoder), decoder_channels=10)
    with pytest.raises(ValueError, match="needs an autoencoder to begin with"):
        latents(features=str(encoder), decoder_only=True)
