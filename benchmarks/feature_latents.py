"""Flows on latents of a pretrained vision encoder's features (FAE), beside flows on an AutoencoderKL's, on digits.

Scikit-learn's 8 × 8 digits, drawn at 32 × 32. A tiny DINOv2 learns to classify them and is then left as it is. Both
autoencoders have latents of one shape and as much time of the processor, and so have both flows. Bits per dimension are
of each latent space by itself, with noise, and do not compare the two; what does is the Fréchet distance.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import argument_parser, count_parameters, markdown_table, prepare, quiet
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from nflib.metrics import frechet_distance
from nflib.training import TrainingConfig, fit
from nflib.training.data import TensorSource
from video.evaluation.features import PooledPixels
from video.flows.starflow import STARFlow
from video.latents import Latents, load_latents
from video.latents.vision import PatchFeatures, load_patch_features
from video.pipeline import Pipeline
from video.pipeline_settings import PipelineSettings
from video.text.labels import Labels
from video.training import AutoencoderOptions, train_autoencoder
from video.training.grids import write_grid

SIDE, PATCH, LATENT_CHANNELS = 32, 8, 16
HELD_OUT = 500
TIMED_STEPS = 20


class Digits(NamedTuple):
    """Frames ``(N, 1, 32, 32)`` in -1 … 1, and the labels of those for training."""

    train: Tensor
    labels: Tensor
    held_out: Tensor


def digits(seed: int) -> Digits:
    """All digits in a random order, the last `HELD_OUT` apart."""
    data = load_digits()
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(seed))
    frames = torch.as_tensor(data.images, dtype=torch.float32)[order].unsqueeze(1) / 8 - 1
    frames = nn.functional.interpolate(frames, (SIDE, SIDE), mode="bilinear").clamp(-1, 1)
    labels = torch.as_tensor(data.target)[order]
    return Digits(frames[:-HELD_OUT], labels[:-HELD_OUT], frames[-HELD_OUT:])


def train_encoder(data: Digits, folder: Path, seconds: float, seed: int) -> float:
    """Train a tiny DINOv2 to classify by its class token and its patches' mean; returns the training accuracy."""
    config = Dinov2Config(
        image_size=SIDE, patch_size=PATCH, num_channels=1, hidden_size=64, num_hidden_layers=3, num_attention_heads=4
    )

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = Dinov2Model(config), nn.Linear(128, 10)

        def forward(self, frames: Tensor) -> Tensor:
            tokens = self.encoder(pixel_values=frames).last_hidden_state
            return self.head(torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))

    def cross_entropy(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Any:
        logits = model(batch["inputs"])
        accuracy = (logits.argmax(1) == batch["context"]).float().mean()
        return nn.functional.cross_entropy(logits, batch["context"]), {"accuracy": accuracy}

    def train(config: TrainingConfig, output: Path) -> Classifier:
        torch.manual_seed(seed)
        classifier, tensors = Classifier(), {"inputs": data.train, "context": data.labels}
        fit(classifier, tensors, config=config, objective=cross_entropy, output=output)
        return classifier

    classifier = train(of_steps(steps_within(seconds, train, seed), seed), folder / "run")
    classifier.encoder.save_pretrained(folder / "encoder")
    with torch.no_grad():
        return float((classifier.eval()(data.train).argmax(1) == data.labels).float().mean())


def of_steps(steps: int, seed: int) -> TrainingConfig:
    """So many steps of training, without validation."""
    return quiet(seed, batch_size=32, max_steps=steps, validation_interval=None, learning_rate=2e-3)


def steps_within(seconds: float, train: Callable[[TrainingConfig, Path], Any], seed: int) -> int:
    """The steps that training does in so many seconds of the processor, whatever else the machine does."""
    used = []
    for steps in (2, 2, 2 + TIMED_STEPS):  # the first run warms up
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            train(of_steps(steps, seed), Path(folder))
            used.append(time.process_time() - start)
    return max(int(seconds * TIMED_STEPS / (used[2] - used[1])), 1)


def encoder_features(vision: PatchFeatures, frames: Tensor) -> Tensor:
    """The means of the features of patches, ``(N, D)``, by which Fréchet distances are measured."""
    side = SIDE // PATCH
    return torch.cat([vision(piece, side, side).mean((2, 3)) for piece in frames.split(100)]).double()


@torch.no_grad()
def psnr(frames: Tensor, others: Tensor) -> float:
    """In dB, of frames in -1 … 1."""
    return 10 * math.log10(4 / float((frames - others).square().mean()))


@torch.no_grad()
def cosines(latents: Any, frames: Tensor) -> tuple[float, float]:
    """Mean cosine of features and of what is decoded from their latents: as they are, and less their mean."""
    inputs = latents.encoder_inputs(frames)
    decoded = latents.autoencoder.decode(latents.posterior(inputs).mode())[0]
    mean, deviation = latents.autoencoder.feature_mean, latents.autoencoder.feature_deviation
    pairs = [(decoded * deviation + mean, inputs * deviation + mean), (decoded * deviation, inputs * deviation)]
    raw, centred = (float(nn.functional.cosine_similarity(*pair, dim=1).mean()) for pair in pairs)
    return raw, centred


def train_flow(latents: Latents, data: Digits, output: Path, noise: float, seconds: float, seed: int) -> Any:
    """A `STARFlow` on noisy latents, its steps, and its bits per dimension of those held out."""
    z = latents.encode(data.train.unsqueeze(1)).squeeze(1)

    def noisy(inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + noise * torch.randn(inputs.shape, generator=generator)

    def train(config: TrainingConfig, output: Path) -> STARFlow:
        torch.manual_seed(seed)
        flow = STARFlow(tuple(z.shape[1:]), 1, 96, [1, 1, 3], layer={"head_dim": 32})
        fit(flow, z, config=config, output=output, augment=noisy)
        return flow

    steps = steps_within(seconds, train, seed)
    flow = train(of_steps(steps, seed), output)
    held_out = noisy(latents.encode(data.held_out.unsqueeze(1)).squeeze(1), torch.Generator().manual_seed(seed))
    with torch.no_grad():
        bits = -flow.eval().log_prob(held_out, batch_size=100).mean() / (held_out[0].numel() * math.log(2))
    return flow, steps, float(bits)


def main() -> None:
    """Train all and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--encoder_seconds", type=float, default=15.0, help="of the processor, for the vision encoder")
    parser.add_argument("--autoencoder_seconds", type=float, default=60.0, help="likewise, each autoencoder")
    parser.add_argument("--flow_seconds", type=float, default=120.0, help="likewise, each flow")
    parser.add_argument("--noise", type=float, default=0.3, help="on latents of deviation 1, for the flows")
    parser.add_argument("--pixel_weight", type=float, default=1.0, help="of FAE's pixels")
    parser.add_argument("--output", type=Path, default=None, help="where grids of samples are written (default: none)")
    arguments = parser.parse_args()
    prepare(arguments)
    seed, data = arguments.seed, digits(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        accuracy = train_encoder(data, folder, arguments.encoder_seconds, seed)
        print(f"Vision encoder: {accuracy:.1%} of the training digits classified", flush=True)
        vision = load_patch_features(folder / "encoder")
        measures = {
            "encoder": lambda frames: encoder_features(vision, frames),
            "pixels": lambda frames: PooledPixels()(frames.unsqueeze(1)),
        }

        def distances(frames: Tensor) -> list[str]:
            return [f"{frechet_distance(of(frames), of(data.held_out)):.3f}" for of in measures.values()]

        rows: list[list[object]] = [["other digits", "", "", "", "", "", *distances(data.train[:HELD_OUT])]]
        entrants = {
            "FAE": AutoencoderOptions(
                features=str(folder / "encoder"),
                latent_channels=LATENT_CHANNELS,
                pixel_weight=arguments.pixel_weight,
                decoder_channels=96,
                decoder_layers=2,
            ),
            "AutoencoderKL": AutoencoderOptions(latent_channels=LATENT_CHANNELS, channels=[8, 16, 32, 48]),
        }
        sources = TensorSource({"inputs": data.train}), TensorSource({"inputs": data.held_out})
        for name, options in entrants.items():
            run = folder / name

            def train(config: TrainingConfig, output: Path, options: AutoencoderOptions = options) -> int:
                trained = options.latents(1, seed)
                train_autoencoder(trained, *sources, output, config, options)
                return count_parameters(trained.autoencoder)

            steps = steps_within(arguments.autoencoder_seconds, train, seed)
            count = train(of_steps(steps, seed), run / "latents")
            latents = load_latents(run / "latents" / "autoencoder")
            decoded = latents.decode(latents.encode(data.held_out.unsqueeze(1))).squeeze(1)
            quality = f"{psnr(decoded, data.held_out):.1f}"
            rows.append([f"{name}, decoded", count, steps, quality, "", "", *distances(decoded)])
            if name == "FAE":
                raw, centred = cosines(latents, data.held_out)
                print(f"FAE: cosine of features {raw:.3f}, less their mean {centred:.3f}", flush=True)
            flow, steps, bits = train_flow(latents, data, run / "flow", arguments.noise, arguments.flow_seconds, seed)
            pipeline = Pipeline(flow, latents, Labels(), PipelineSettings((1, 1, SIDE, SIDE), arguments.noise))
            drawn = torch.cat([pipeline.generate([""] * 100, seed=number) for number in range(HELD_OUT // 100)])
            shape = " × ".join(map(str, pipeline.latents.latent_shape((1, 1, SIDE, SIDE))[1:]))
            rows.append([f"{name}, STARFlow", count_parameters(flow), steps, "", shape, f"{bits:.3f}"])
            rows[-1] += distances(drawn.squeeze(1))
            print(*rows[-2], *rows[-1], flush=True)
            if arguments.output is not None:
                write_grid(drawn[:64], arguments.output / f"{name}-samples.png")
                pairs = torch.stack([data.held_out[:32], decoded[:32]], 1)
                write_grid(pairs, arguments.output / f"{name}-decoded.png", columns=8)
    print(
        f"\nDigits, {arguments.autoencoder_seconds:g} s of the processor for each autoencoder, "
        f"{arguments.flow_seconds:g} s for each flow; {HELD_OUT} pictures against {HELD_OUT} held out"
    )
    header = ["pictures", "parameters", "steps", "PSNR / dB", "latents", "bits per latent dimension"]
    print(markdown_table([*header, *(f"Fréchet distance, {name}" for name in measures)], rows))


if __name__ == "__main__":
    main()
