"""Options of a user's own folder as training data."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from video.data.dataset import ClipFolder
from video.data.decoding import as_rate
from video.data.folders import read_folder
from video.data.latent_cache import LatentCache, encode_clip_folder
from video.data.samples import Listing
from video.data.sizes import Bucket
from video.latents.latents import Latents

SIZE, FRAME_RATE = "64", 8.0
PARTS = ("training", "validation")
MOST_LEVELS = 256  # of the 8 bits of files

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderOptions:
    """Images and clips of a user's own.

    Args:
        data: a folder of images, clips or tar shards, with captions (metadata.jsonl or metadata.csv, or a .txt beside
            each) or labels (metadata, or a subfolder for each class), if any.
        size: of frames, to which files are resized and cropped: a number of pixels, or height x width, "48x80"; default
            64, or that of an initial model.
        frame_rate: frames a second, to which clips are resampled; default 8, or that of an initial model.
        mirrored: learn each image and clip mirrored, left to right, as well.
        grey: learn grey frames (default: colours, or what the autoencoder takes).
        levels: how many values a pixel has, from black to white: 256, or fewer of files that were made of so many;
            default 256, or those of an initial model.
        validation: share of the files to validate by, which a hash of their names chooses.
    """

    data: Path
    size: str | None = None
    frame_rate: float | None = None
    mirrored: bool = False
    grey: bool = False
    levels: int | None = None
    validation: float = 0.1

    def __post_init__(self) -> None:
        if self.frame_rate is not None:
            as_rate(self.frame_rate)
        if self.levels is not None and not 2 <= self.levels <= MOST_LEVELS:
            raise ValueError(f"levels, the values that a pixel has, must lie in 2 … {MOST_LEVELS}, got {self.levels}.")

    def completed(self, size: str = SIZE, frame_rate: float = FRAME_RATE, levels: int = MOST_LEVELS) -> FolderOptions:
        """These options with defaults filled in.

        Args:
            size: where none is given.
            frame_rate: where none is given.
            levels: where none are given.
        """
        defaults: dict[str, Any] = {"size": size, "frame_rate": frame_rate, "levels": levels}
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})

    @property
    def rate(self) -> float:
        """Frames a second."""
        return FRAME_RATE if self.frame_rate is None else self.frame_rate

    def check_levels(self, has_levels: bool) -> None:
        """Raise ValueError for levels of what has none: only of pixels that a flow learns do they count."""
        if self.levels is not None and not has_levels:
            raise ValueError("levels are of the pixels that a tarflow learns: leave levels out.")

    def height_and_width(self) -> tuple[int, int]:
        """The size of frames, pixels; raises ValueError for a size that is none."""
        found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", SIZE if self.size is None else self.size)
        if found is None:
            raise ValueError(f"size must be a number of pixels, or height x width such as 48x80, got {self.size!r}.")
        return int(found[1]), int(found[2] or found[1])

    def parts(self, condition: str) -> tuple[Listing, Listing]:
        """What to learn and what to validate by; what was left out goes to the log. Raises as `read_folder` does."""
        listing = read_folder(self.data, condition)
        for problem in listing.problems:
            log.warning("%s", problem)
        return listing.split(self.validation)

    def caches(
        self,
        parts: Sequence[Listing],
        shapes: Sequence[Bucket],
        latents: Latents,
        text: Callable[[Sequence[str]], Tensor | None] | None,
        folder: Path,
    ) -> list[LatentCache]:
        """The latents of both parts, encoded into a folder unless they are there; files skipped go to the log.

        Args:
            parts: for training and validation.
            shapes: buckets of clips.
            latents: the autoencoder.
            text: makes contexts of prompts; None takes class numbers, where the condition is labels.
            folder: for both.
        """
        caches = []
        for name, part in zip(PARTS, parts, strict=True):
            clips = ClipFolder(
                part,
                shapes,
                frame_rate=self.rate,
                channels=latents.in_channels,
                with_mirrored=self.mirrored and name == PARTS[0],
                text=text,
            )
            cache = encode_clip_folder(clips, latents, folder / name, dtype=latents.kept_dtype)
            if cache.skipped:
                log.warning("Of what is for %s: %s", name, cache.report())
            log.info("For %s: %d clips of %d files.", name, len(cache), len(cache.samples.unique()))
            caches.append(cache)
        return caches

    def fixed(self) -> dict[str, Any]:
        """What a run that goes on must share with its beginning; the files themselves are compared elsewhere."""
        return {name: value for name, value in dataclasses.asdict(self.completed()).items() if name != "data"}
