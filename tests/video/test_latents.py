"""Autoencoders of diffusers, tiny ones, saved and loaded as folders; training one; the scale of latents."""

import json
import math

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from examples.moving_digits.train import Frames
from nflib.training import TrainingConfig
from tests.quiet import QUIET
from tests.video.tiny import tiny_latents, tiny_wan
from video.latents.latents import Latents, WanLatents
from video.latents.load import load_latents
from video.training import AutoencoderOptions, NoisyReconstruction, train_autoencoder


@torch.no_grad()
def test_frames_are_scaled_and_come_back(tmp_path):
    latents = tiny_latents()
    latents.autoencoder.save_pretrained(tmp_path)
    loaded = load_latents(tmp_path)
    assert type(loaded) is Latents
    clips = torch.rand(2, 3, 1, 32, 32) * 2 - 1
    z = loaded.encode(clips)
    assert z.shape == (2, 3, 2, 4, 4) == (2, *loaded.latent_shape((3, 1, 32, 32)))
    raw = latents.autoencoder.encode(clips[1, 2:]).latent_dist.mode()
    torch.testing.assert_close(z[1, 2:], (raw - 0.1) * 2)
    decoded = latents.autoencoder.decode(raw).sample.clamp(-1, 1)
    torch.testing.assert_close(loaded.decode(z)[1, 2:], decoded)
    small = Latents(latents.autoencoder, batch_size=4)
    torch.testing.assert_close(small.encode(clips), z)


@torch.no_grad()
def test_wan(tmp_path):
    autoencoder = tiny_wan().eval()
    autoencoder.save_pretrained(tmp_path)
    loaded = load_latents(tmp_path)
    assert type(loaded) is WanLatents
    clips = torch.rand(2, 5, 3, 16, 16) * 2 - 1
    z = loaded.encode(clips)
    assert z.shape == (2, 3, 2, 4, 4) == (2, *loaded.latent_shape((5, 3, 16, 16)))
    raw = autoencoder.encode(clips[1:].transpose(1, 2)).latent_dist.mode().transpose(1, 2)
    expected = (raw - torch.tensor([0.5, -0.5]).view(2, 1, 1)) / torch.tensor([2.0, 4.0]).view(2, 1, 1)
    torch.testing.assert_close(z[1:], expected)
    decoded = autoencoder.decode(raw.transpose(1, 2)).sample.transpose(1, 2).clamp(-1, 1)
    torch.testing.assert_close(loaded.decode(z)[1:], decoded, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="1 frame and multiples of 2 more"):
        loaded.encode(clips[:, :4])


@pytest.mark.parametrize("halves", [(False, False), (False, True), (True, True)])
def test_every_frame_is_read(halves):
    """Of clips of any number of frames that fits, whatever so many frames become: the longer clip begins like them."""
    latents = WanLatents(tiny_wan(halves).eval())
    factor = latents.temporal_factor
    clips = torch.rand(1, 1 + 4 * factor, 3, 16, 16) * 2 - 1
    z = latents.encode(clips)
    for count in range(1, 5):
        begun = clips[:, : 1 + (count - 1) * factor]
        torch.testing.assert_close(latents.encode(begun), z[:, :count])
        assert latents.decode(z[:, :count]).shape == begun.shape
    other = torch.cat([clips[:, :-1], -clips[:, -1:]], dim=1)
    assert ((latents.encode(other) - z).flatten(2).abs().amax(-1) > 1e-6).tolist() == [[*4 * [False], True]]


def test_training_and_decoder_alone(tmp_path):
    config = TrainingConfig(batch_size=4, max_steps=2, **QUIET)
    frames = Frames("train", 2048), Frames("validation", 8)

    def train(name, **options):
        chosen = AutoencoderOptions(**options)
        train_autoencoder(chosen.latents(1, 0), *frames, tmp_path / name, config, chosen)

    train("first", latent_channels=2, channels=[4, 4])
    folder = tmp_path / "first" / "autoencoder"
    first = load_latents(folder)
    z = first.encode(frames[0].batch(torch.arange(256))["inputs"].unsqueeze(1))
    assert abs(float(z.mean())) < 0.1 and abs(float(z.std()) - 1) < 0.1
    train("second", initial=str(folder), decoder_only=True)
    second = load_latents(tmp_path / "second" / "autoencoder")
    clips = torch.rand(1, 1, 1, 32, 32)
    assert torch.equal(first.encode(clips), second.encode(clips))
    assert not torch.equal(first.decode(z[:1]), second.decode(z[:1]))
    with pytest.raises(ValueError, match="needs an autoencoder to begin with"):
        train("third", decoder_only=True)


def test_set_scale():
    latents, frames = tiny_latents(), torch.rand(8, 1, 32, 32)
    latents.autoencoder.register_to_config(latents_mean=[0.5, -0.5], latents_std=[2.0, 4.0])  # which it had before
    latents.set_scale(frames)
    z = latents.encode(frames.unsqueeze(1))
    torch.testing.assert_close(torch.stack([z.mean(), z.std()]), torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)


def test_mistakes(tmp_path):
    latents = tiny_latents()
    with pytest.raises(ValueError, match="multiples of 8"):
        latents.encode(torch.zeros(1, 1, 1, 30, 32))
    with pytest.raises(ValueError, match="it takes 1 channels"):
        latents.encode(torch.zeros(1, 1, 3, 32, 32))
    with pytest.raises(ValueError, match="expected clips of shape"):
        latents.encode(torch.zeros(1, 1, 32, 32))
    for clips, got in (
        (torch.zeros(1, 1, 1, 32, 32).byte(), "uint8"),
        (torch.full((1, 1, 1, 32, 32), 255.0), "255 … 255"),
    ):
        with pytest.raises(ValueError, match=f"in -1 … 1, got {got}; of levels 0 … 255, divide by 127.5"):
            latents.encode(clips)
    with pytest.raises(FileNotFoundError, match="no autoencoder can be read from the folder"):
        load_latents(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    with pytest.raises(ValueError, match="holds a VQModel"):
        load_latents(tmp_path)


def test_channels_of_a_new_autoencoder():
    frames = torch.rand(2, 1, 1, 16, 16)
    latents = AutoencoderOptions(channels=[12, 24]).latents(1, 0)
    assert latents.autoencoder.config.norm_num_groups == 4 and latents.encode(frames).shape == (2, 1, 8, 8, 8)
    for options in ({"channels": []}, {"channels": [0]}, {"noise": -1.0}, {"pixel_weight": -1.0}, {"noise": math.nan}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must"):
            AutoencoderOptions(**options)


@torch.no_grad()
def test_wan_in_patches_of_pixels():
    """The layout of Wan 2.2: a patch's pixels are channels."""
    torch.manual_seed(0)
    statistics = {"latents_mean": [0.1, -0.2, 0.3, -0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]}
    sizes = {"base_dim": 4, "z_dim": 4, "num_res_blocks": 1, "patch_size": 2, "in_channels": 12, "out_channels": 12}
    autoencoder = AutoencoderKLWan(**sizes, **statistics).eval()
    latents = WanLatents(autoencoder, later_scale=0.6)
    clips = torch.rand(1, 5, 3, 32, 32) * 2 - 1
    z = latents.encode(clips)
    assert z.shape == (1, 2, 4, 2, 2) == (1, *latents.latent_shape((5, 3, 32, 32)))
    mean, deviation = (torch.tensor(value).view(4, 1, 1) for value in statistics.values())
    raw = autoencoder.encode(clips.transpose(1, 2)).latent_dist.mode().transpose(1, 2)
    expected = (raw - mean) / deviation
    torch.testing.assert_close(z[:, 0], expected[:, 0], atol=1e-5, rtol=0)  # a single picture is not scaled
    torch.testing.assert_close(z[:, 1], 0.6 * expected[:, 1], atol=1e-5, rtol=0)
    decoded = autoencoder.decode(raw.transpose(1, 2)).sample.transpose(1, 2).clamp(-1, 1)
    torch.testing.assert_close(latents.decode(z), decoded, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="multiples of 16"):
        latents.encode(clips[..., :24])


@pytest.mark.parametrize("shift", [None, 0.7])
@torch.no_grad()
def test_statistics_of_channels(shift):
    """As diffusers' own pipelines take them, the shift is then not used."""
    autoencoder = tiny_latents().autoencoder
    autoencoder.register_to_config(latents_mean=[0.5, -0.5], latents_std=[2.0, 4.0], shift_factor=shift)
    latents, frames = Latents(autoencoder), torch.rand(3, 1, 1, 32, 32)
    raw = autoencoder.encode(frames[:, 0]).latent_dist.mode()
    z = latents.encode(frames)
    expected = (raw - torch.tensor([0.5, -0.5]).view(2, 1, 1)) * 2.0 / torch.tensor([2.0, 4.0]).view(2, 1, 1)
    torch.testing.assert_close(z[:, 0], expected)
    torch.testing.assert_close(latents.decode(z)[:, 0], autoencoder.decode(raw).sample.clamp(-1, 1))
    autoencoder.register_to_config(latents_mean=[0.5])
    with pytest.raises(ValueError, match="have 1 and 2 numbers for 2 channels"):
        Latents(autoencoder)


def test_loss_of_a_known_posterior():
    """Of pixels as their own latents, with a deviation of 0.5."""

    class Known(Latents):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def posterior(self, inputs):
            return DiagonalGaussianDistribution(torch.cat([inputs, torch.full_like(inputs, math.log(0.25))], dim=1))

        def decode_frames(self, z):
            return z

    frames, generator = 3 * torch.randn(3, 1, 4, 4), torch.Generator().manual_seed(4)
    objective = NoisyReconstruction(Known(), noise=0.2, divergence_weight=0.1, pixel_weight=3.0)
    total, figures = objective(objective.latents, {"inputs": frames}, torch.Generator().manual_seed(4))
    drawn, noise = (torch.randn(frames.shape, generator=generator) for _ in range(2))
    error = (0.5 * drawn + 0.2 * frames.std() * noise).square().mean()
    divergence = 0.5 * (frames.square() + 0.25 - 1 - math.log(0.25)).mean()
    torch.testing.assert_close(total, 3 * error + 0.1 * divergence)
    torch.testing.assert_close(figures, {"squared_error": error, "divergence": divergence})
