"""Saved autoencoders: from the hub, or from a local folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nflib.errors import first_line
from video.latents.features import FeatureLatents
from video.latents.latents import Latents, WanLatents, import_diffusers

AUTOENCODER = "autoencoder"  # its folder, in that of a model or a run
KINDS: dict[str, type[Latents]] = {family.kind: family for family in (Latents, WanLatents, FeatureLatents)}


def load_latents(
    source: str | os.PathLike[str], subfolder: str | None = None, device: str = "cpu", later_scale: float = 1.0
) -> Latents:
    """Load an autoencoder of any kind, in evaluation mode.

    Args:
        source: a local folder, or a name on the hub such as "stabilityai/sd-vae-ft-mse".
        subfolder: where it lies in there (default: "vae" where there is one, as in pipelines of diffusers).
        device: where it is put.
        later_scale: as for `Latents`.

    Raises:
        FileNotFoundError: there is none, or the hub cannot be reached.
        ValueError: an autoencoder of another kind, or a damaged one.
    """
    diffusers = import_diffusers()
    if subfolder is None and (Path(source) / "vae").is_dir():
        subfolder = "vae"
    keywords: dict[str, Any] = {} if subfolder is None else {"subfolder": subfolder}
    try:
        config = diffusers.AutoencoderKL.load_config(str(source), **keywords)
        kind = config.get("_class_name", config.get("architecture"))
        if kind not in KINDS:
            raise ValueError(f"{source} holds a {kind}, not one of {', '.join(KINDS)}.")
        latents = KINDS[kind].load(source, **keywords, later_scale=later_scale)
    except OSError as error:
        where = "the folder" if Path(source).exists() else "a folder or hub name"
        raise FileNotFoundError(
            f"no autoencoder can be read from {where} {str(source)!r} ({first_line(error)}); give the folder that "
            "save_pretrained wrote, or a name on the hub while it can be reached."
        ) from error
    return latents.to(device).eval().requires_grad_(False)
