"""Released weights, with the autoencoder and the text encoder that they take, as a folder of a `video.Pipeline`."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nflib.command_line import refuse_given
from nflib.flows import Flow
from nflib.io import read_lines
from video.conversion.released import is_tarflow, starflow_from_state_dict, tarflow_from_state_dict
from video.conversion.released_config import read_released_config, released_autoencoder
from video.conversion.weights import read_released_weights
from video.latents.latents import Latents, Pixels
from video.latents.load import load_latents
from video.parts import save_parts
from video.pipeline_settings import PipelineSettings
from video.text.encoders import TextEncoder, load_text
from video.text.labels import Labels, composed
from video.text.phrases import Phrasing

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# How files of TARFlows are named: patch size, width, blocks, layers, noise.
TARFLOW_NAME = re.compile(r"_(\d+)_\d+_\d+_\d+_(\d*\.\d+|uniform)$")
# Of pixels to which TARFlows are fitted without noise: level k becomes uniform in (2 k … 2 k + 2) / 256 - 1.
DEQUANTISED: dict[str, Any] = {"denoise": "none", "levels": 256, "file_levels": 256, "pixel_scale": 255 / 256}
# Of the latent frames of a window, how many the public sampler gives the next one.
CONTEXT_FRAMES = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Parts:
    """What a pipeline is made of."""

    flow: Flow
    latents: Latents
    text: TextEncoder
    settings: PipelineSettings


def convert(
    checkpoint: Path,
    output: Path,
    config: Path | None = None,
    autoencoder: str | None = None,
    text: str | None = None,
    labels: Path | None = None,
    dtype: str | None = None,
    patch_size: int | None = None,
    noise: float | None = None,
) -> Path:
    """Convert released weights of a STARFlow, STARFlow-V or TARFlow into a model that generate draws from.

    The weights are mapped into memory, and written one tensor after the other.

    Args:
        checkpoint: a .pth or .safetensors file, or the index.json of shards.
        output: the folder of the model.
        config: of a STARFlow, its YAML or JSON file; of a TARFlow nothing, or a file that names patch_size and
            noise_std, or the noise_type "uniform", of dequantised pixels.
        autoencoder: of a STARFlow, the one of its configuration, as diffusers saves it: a folder or a name on the hub.
        text: of a STARFlow, its text encoder with the tokenizer, as transformers saves it: a folder or a name.
        labels: of a TARFlow with classes, their names, a text file with one a line (default: their numbers).
        dtype: of the weights of flow and text encoder: float32, bfloat16 or float16; default: as they are.
        patch_size: of a TARFlow (default: from the configuration, or the file's name).
        noise: standard deviation of what was added to latents in training; default: likewise. 0 of a TARFlow of
            uniformly dequantised pixels: evaluate then gives bits of 8-bit levels, as they are published.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: files are missing.
        OSError: the folder cannot be written.
        ValueError: files that are damaged, do not go together, or hold another model.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    arguments = {} if config is None else read_released_config(config)
    state = read_released_weights(checkpoint)
    if noise is not None:
        arguments |= {"noise_std": noise, "noise_type": None}
    wanted = None if dtype is None else DTYPES[dtype]
    if is_tarflow(state):
        refuse_given({"autoencoder": autoencoder, "text": text}, f"goes with a STARFlow, and {checkpoint} is a TARFlow")
        arguments = _from_name(checkpoint) | arguments | ({} if patch_size is None else {"patch_size": patch_size})
        parts = _tarflow(arguments, state, labels)
    else:
        if config is None or autoencoder is None or text is None:
            raise ValueError(
                f"{checkpoint} holds a STARFlow, which takes more than its weights: give its configuration by "
                "--config, its autoencoder by --autoencoder, and its text encoder by --text."
            )
        of_tarflow = {"labels": labels, "patch_size": patch_size}
        refuse_given(of_tarflow, f"goes with a TARFlow, and {checkpoint} is a STARFlow")
        parts = _starflow(arguments, state, autoencoder, text, wanted)
    save_parts(parts.flow, parts.latents, parts.text, parts.settings, output, wanted)
    log.info("Written %s: %d million weights.", output, sum(p.numel() for p in parts.flow.parameters()) / 1e6)
    return output


def _starflow(
    arguments: Mapping[str, Any], state: Mapping[str, Tensor], autoencoder: str, text: str, dtype: torch.dtype | None
) -> _Parts:
    latents = load_latents(autoencoder, later_scale=released_autoencoder(arguments)[1])
    factors = latents.spatial_factor, latents.temporal_factor
    flow = starflow_from_state_dict(arguments, state, factors=factors, keep_dtype=True)
    is_language_model = bool(arguments.get("use_pretrained_lm"))
    length = int(arguments.get("txt_size") or 128)
    encoder = load_text(text, length, embeddings_only=is_language_model, dtype=dtype)
    frames, _, rate = str(arguments.get("vid_size") or "1").partition(":")
    side = int(arguments["img_size"]) * (1 if released_autoencoder(arguments)[0] else factors[0])
    is_video, has_denoiser = len(flow.event_shape) == 4, flow.denoiser is not None
    settings = PipelineSettings(
        clip_shape=(int(frames) if is_video else 1, latents.in_channels, side, side),
        noise=_noise(arguments),
        frame_rate=float(rate or 8),
        later_scale=latents.later_scale,
        phrasing=Phrasing(
            frame_rate=bool(arguments.get("fps_cond")),
            noise=bool(arguments.get("cond_noise_level")),
            aspect=bool(arguments.get("mix_aspect")),
            chat=is_language_model,
            denoiser=has_denoiser,
        ),
        aspect_ratio="1:1" if arguments.get("mix_aspect") else None,
        guidance=float(arguments.get("cfg") or 0),
        denoise="learned" if has_denoiser else "score",
        overlap=min(CONTEXT_FRAMES, flow.max_frames - 1) if is_video else None,
    )
    return _Parts(flow, latents, encoder, settings)


def _tarflow(arguments: Mapping[str, Any], state: Mapping[str, Tensor], labels: Path | None) -> _Parts:
    if not arguments.get("patch_size"):
        raise ValueError("a TARFlow's weights do not tell its patch size; give it by --patch-size.")
    flow = tarflow_from_state_dict(state, int(arguments["patch_size"]), keep_dtype=True)
    channels, height, width = flow.event_shape
    number = int((flow.config or {})["num_classes"])
    noise = 0.0 if arguments.get("noise_type") == "uniform" else _noise(arguments)
    settings = PipelineSettings((1, channels, height, width), noise, guidance=0.0, **({} if noise else DEQUANTISED))
    return _Parts(flow, Pixels(channels), Labels(_names(labels, number)), settings)


def _names(labels: Path | None, number: int) -> list[str]:
    """Of so many classes; raises FileNotFoundError or ValueError where a file has others."""
    if labels is None:
        return [str(index) for index in range(number)]
    names = [line.strip() for line in read_lines(labels, "the name of a class") if line.strip()]
    if len(names) != number:
        raise ValueError(f"{labels} names {len(names)} classes, and the model has {number}; name each on a line.")
    if again := [name for name, count in Counter(map(composed, names)).items() if count > 1]:
        raise ValueError(f"{labels} names several classes {again[0]!r}; give each a name of its own.")
    return names


def _noise(arguments: Mapping[str, Any]) -> float:
    if arguments.get("noise_std") is None:
        raise ValueError("nothing tells the noise that the model was trained with; give it by --noise.")
    return float(arguments["noise_std"])


def _from_name(checkpoint: Path) -> dict[str, Any]:
    """What the name of a TARFlow's file tells; "uniform" noise, of dequantisation, is no normal one."""
    found = TARFLOW_NAME.search(checkpoint.stem)
    if found is None:
        return {}
    return {"patch_size": int(found[1]), "noise_std": 0.0 if found[2] == "uniform" else float(found[2])}
