"""Training of a flow on a folder of images or clips."""

from __future__ import annotations

from pathlib import Path

from nflib.training import TrainingResult
from nflib.training.config import TrainingConfig
from video.training.folder import FolderOptions, train_on_folder


def train(
    data: FolderOptions,
    output: Path,
    training: TrainingConfig,
    model: str = "starflow",
    autoencoder: str | None = None,
    condition: str = "auto",
    text: str | None = None,
    text_length: int | None = None,
    frames: int | list[int] | None = None,
    largest_aspect: float = 1.0,
    noise: float | None = None,
    prompt_dropout: float = 0.1,
    samples: int = 16,
    patch_size: int | None = None,
    channels: int | None = None,
    layers_per_block: list[int] | None = None,
    head_dim: int | None = None,
) -> TrainingResult:
    """Train a flow on a folder of images or clips; run again, it goes on from its last checkpoint.

    What is written: pipeline, a model for generate; latents and prompts, encoded once; samples, a grid at each
    validation; logs, checkpoints, and result.json. The loss is in bits per dimension. What is not said of the
    architecture has the default of the flow.

    Args:
        data: images and clips.
        output: folder for all that is written.
        training: length, learning rate and everything else of the loop.
        model: tarflow (images, pixels), starflow (images, latents) or starflow-v (clips, latents).
        autoencoder: whose latents are learnt: a folder of diffusers (AutoencoderKL, AutoencoderKLWan), a name on the
            hub, or the output of train_autoencoder.
        condition: caption, label, none, or auto: the first of these that the data have. To tarflow labels are classes,
            to others words.
        text: encoder of prompts: a folder of transformers with a tokenizer (T5 or another), or a name on the hub;
            default: a vocabulary of all words that the data have.
        text_length: tokens to which prompts are padded and cut, with text; default: as saved, or 128.
        frames: of a clip, one number or several, of which each clip is cut by the largest that it has; default 16 of
            starflow-v.
        largest_aspect: of the longer side to the shorter one, up to which aspect ratios have shapes of their own, of
            about the same area; 1: all is cropped to one shape, as for tarflow it is in any case.
        noise: standard deviation of the noise on pixels in -1 … 1, or on latents, of deviation 1; default 0.05 or 0.3.
            Without any, pixels are dequantised uniformly.
        prompt_dropout: share of prompts or labels left out in training, which guidance takes.
        samples: how many are drawn at each validation; 0 for none.
        patch_size: pixels, or latents, along the side of a token; default 4 of tarflow, 1 of others.
        channels: width of the transformers.
        layers_per_block: layers of each autoregressive map, of starflow the last one deep, and given the prompt.
        head_dim: channels of an attention head.

    Returns:
        A summary.

    Raises:
        FileNotFoundError: files are missing.
        OSError: another run is at work in the folder, or it cannot be written.
        ValueError: files or settings that do not fit, or a run in the folder of other settings.
    """
    architecture = {
        "patch_size": patch_size,
        "channels": channels,
        "layers_per_block": layers_per_block,
        "head_dim": head_dim,
    }
    return train_on_folder(
        data,
        output,
        training,
        model=model,
        autoencoder=autoencoder,
        text=text,
        text_length=text_length,
        condition=condition,
        frames=[frames] if isinstance(frames, int) else frames or [],
        largest_aspect=largest_aspect,
        noise=noise,
        dropout=prompt_dropout,
        samples=samples,
        architecture={name: value for name, value in architecture.items() if value is not None},
    )
