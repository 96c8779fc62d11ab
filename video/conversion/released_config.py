"""The configurations of released STARFlows, as settings of ours."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nflib.errors import first_line
from nflib.optional import require
from video.conversion.layouts import DOWNSAMPLING, LANGUAGE_MODELS, LAYER_SETTINGS, REQUIRED, YAML_NAMES

WEIGHTS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
Config = str | os.PathLike[str] | Mapping[str, Any]


def read_released_config(config: Config) -> dict[str, Any]:
    """Read the arguments in a released configuration: a YAML or JSON file, or a mapping; lists of pairs are joined.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: it is YAML, and PyYAML is not installed.
        ValueError: it is no configuration.
    """
    if not isinstance(config, Mapping):
        config = _read_file(Path(config))
    arguments = config.get("arguments", config)
    if isinstance(arguments, list):
        arguments = {name: value for item in arguments for name, value in item.items()}
    return {YAML_NAMES.get(name, name): value for name, value in arguments.items()}


def _read_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration {path}; give the path of a .yaml or .json file.")
    if path.suffix in WEIGHTS or path.name.endswith(".index.json"):
        raise ValueError(f"{path} is a file of weights: pass the configuration (.yaml) first, then the checkpoint.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: give the configuration, a .yaml or .json file.") from error
    if path.suffix == ".json":
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON ({error}).") from error
    else:
        yaml = require("yaml", f"reading {path} needs PyYAML,", extra="video")
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML ({first_line(error)}).") from error
    if not isinstance(document, Mapping):
        raise ValueError(f"{path} holds no configuration: it must be a mapping of names to values.")
    return document


def starflow_settings(
    arguments: Mapping[str, Any],
    text_channels: int,
    num_frames: int | None = None,
    factors: tuple[int, int] | None = None,
) -> tuple[dict[str, Any], bool, bool]:
    """The arguments of our STARFlow or STARFlowV; whether rotary pairs are halves, of shallow blocks and the top one.

    Args:
        arguments: as `read_released_config` gives them.
        text_channels: of the text that the weights take.
        num_frames: what a video's event_shape starts with (default: from vid_size).
        factors: of the autoencoder, by how much it reduces sides and the number of frames (default: by its name).

    Raises:
        ValueError: settings that are not supported.
    """
    _check(arguments)
    depths = _integers(arguments["layers_per_block"])
    if len(depths) == 1:
        depths *= int(arguments["num_blocks"])
    text_length = int(arguments.get("txt_size") or 0)
    patch_size = int(arguments["patch_size"])
    side, frames = _latent_size(arguments, factors)
    layer: dict[str, Any] = {
        ours: arguments[theirs] for theirs, ours in LAYER_SETTINGS.items() if arguments.get(theirs) is not None
    }
    layer["mlp"] = "gated" if arguments.get("use_swiglu") else "gelu"
    layer["final_norm"] = arguments.get("use_final_norm", 0)
    for name in ("query_key_norm", "post_norm", "bias", "final_norm"):
        if name in layer:
            layer[name] = bool(layer[name])
    channels = int(arguments["channels"])
    settings = {
        "event_shape": [int(arguments["in_channels"]), side, side],
        "patch_size": patch_size,
        "channels": channels,
        "layers_per_block": depths,
        "text_length": text_length,
        "text_channels": text_channels if text_length else 0,
        "layer": layer,
        "top": {},
        "span": arguments.get("pt_seq_len") or side // patch_size,
        "reverse_first": arguments.get("seq_order", "R2L") == "L2R",
        "scale": "softplus" if arguments.get("use_softplus") else "exponential",
        "soft_clip": float(arguments.get("soft_clip") or 0),
    }
    has_halves = top_has_halves = bool(arguments.get("hf_style_rope"))
    if arguments.get("top_block_channels") not in (None, channels):
        settings["top"] = {"channels": int(arguments["top_block_channels"])}
    if arguments.get("use_pretrained_lm"):
        settings["layers_per_block"][-1], settings["project_text"], top = _language_model(arguments)
        settings["top"] = dict(top)
        if not settings["project_text"]:
            settings["text_channels"] = top["channels"]
        top_has_halves = True
    lookahead = int(arguments.get("temporal_causal") or 0) - 1
    if lookahead >= 0:
        frames = num_frames or frames
        if not frames:
            raise ValueError("the configuration says of no number of frames (vid_size); pass num_frames.")
        settings["event_shape"] = [frames, *settings["event_shape"]]
        if arguments.get("learnable_self_denoiser"):
            window = arguments.get("denoiser_window")
            settings["denoiser"] = {
                "past": None if window is None else window - lookahead,
                "future": lookahead,
                "use_text": bool(arguments.get("conditional_denoiser")),
            }
    return settings, has_halves, top_has_halves


def released_autoencoder(arguments: Mapping[str, Any]) -> tuple[str | None, float]:
    """The name of a released configuration's autoencoder, and the scale of its latent frames but the first.

    Their `vae` is such as "Wan-AI/Wan2.2-TI2V-5B-Diffusers:0.6"; see `later_scale` of `video.latents.Latents`. Raises
    ValueError for a scale that is none.

    >>> released_autoencoder({"vae": "Wan-AI/Wan2.2-TI2V-5B-Diffusers:0.6"})
    ('Wan-AI/Wan2.2-TI2V-5B-Diffusers', 0.6)
    """
    name, _, scale = str(arguments.get("vae") or "none").partition(":")
    try:
        value = float(scale or 1)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"the scale behind the colon of vae {arguments['vae']!r} is no positive number.")
    return None if name == "none" else name, value


def _check(arguments: Mapping[str, Any]) -> None:
    needed = ("in_channels", "img_size", "patch_size", "channels", "layers_per_block")
    missing = [name for name in needed if arguments.get(name) is None]
    if missing:
        raise ValueError(f"the configuration lacks {missing[0]!r}, so it is no STARFlow's; check the file.")
    for name, what in REQUIRED.items():
        if not arguments.get(name):
            raise ValueError(f"the configuration has {name} off, but a STARFlow has {what}.")
    if arguments.get("txt_size") and not arguments.get("cond_top_only"):
        raise ValueError(
            "the configuration gives text to all blocks; a STARFlow gives it to the top one (cond_top_only)."
        )
    is_video = bool(arguments.get("temporal_causal"))
    if is_video != bool(arguments.get("shallow_block_local")):
        raise ValueError("temporal_causal and shallow_block_local belong together; the configuration has one of them.")
    if not is_video and arguments.get("learnable_self_denoiser"):
        raise ValueError("the configuration has a learned denoiser for images; a STARFlow has one for video alone.")


def _latent_size(arguments: Mapping[str, Any], known: tuple[int, int] | None) -> tuple[int, int | None]:
    """Side of the latents, and number of their frames or None; with `vae`, sizes are given in pixels and frames."""
    side = int(arguments["img_size"])
    frames = int(str(arguments["vid_size"]).split(":")[0]) if arguments.get("vid_size") else None
    name, _ = released_autoencoder(arguments)
    if name is None:
        return side, frames
    factors = [known] if known else [value for part, value in DOWNSAMPLING.items() if part in name]
    if not factors:
        raise ValueError(
            f"the autoencoder {name!r} is unknown: drop it from the configuration, and give img_size in latents."
        )
    spatial, temporal = factors[0]
    return side // spatial, frames and (frames - 1) // temporal + 1


def _language_model(arguments: Mapping[str, Any]) -> tuple[int, bool, dict[str, Any]]:
    name = arguments["use_pretrained_lm"]
    if name not in LANGUAGE_MODELS:
        raise ValueError(f"use_pretrained_lm must be one of {', '.join(LANGUAGE_MODELS)}, got {name!r}.")
    return LANGUAGE_MODELS[name]


def _integers(value: Any) -> list[int]:
    """From 2, [2, 2] or "2 2"."""
    items = value.split() if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    return [int(item) for item in items]
