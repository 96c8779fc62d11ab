"""A folder of images or clips as batches to judge by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from video.data import Bucket, ClipFolder, read_folder
from video.pipeline_settings import PipelineSettings


class FolderBatches:
    """Clips of a folder in the shape that a model was trained on, in batches, with captions or labels, and their files.

    Args:
        folder: as `read_folder` takes it.
        settings: of the model: shape and frame rate.
        num_clips: so many of them, drawn by the seed; None for all.
        batch_size: clips at once.
        condition: "caption", "label", "none" or "auto": see `read_folder`.
        seed: of the draw.

    Raises:
        FileNotFoundError, ValueError: no folder, or nothing in it that can be read as such clips.
    """

    def __init__(
        self,
        folder: Path,
        settings: PipelineSettings,
        *,
        num_clips: int | None = None,
        batch_size: int = 50,
        condition: str = "auto",
        seed: int = 0,
    ) -> None:
        if batch_size < 1 or (num_clips is not None and num_clips < 1):
            raise ValueError(f"batch_size and num_clips must be positive, got {batch_size} and {num_clips}.")
        frames, channels, height, width = settings.clip_shape
        self.listing = read_folder(folder, condition)
        self.source = ClipFolder(
            self.listing, [Bucket(frames, height, width)], frame_rate=settings.frame_rate, channels=channels
        )
        order = torch.randperm(len(self.source), generator=torch.Generator().manual_seed(seed))
        self.rows = order[:num_clips].sort().values.tolist()
        self.batch_size = batch_size

    @property
    def classes(self) -> Sequence[str]:
        """Names of its classes; none where clips have captions."""
        return self.listing.classes if self.listing.condition == "label" else ()

    def __iter__(self) -> Iterator[tuple[Tensor, list[str], list[int]]]:
        for first in range(0, len(self.rows), self.batch_size):
            found = list(self.source.decoded(self.rows[first : first + self.batch_size]))
            if found:
                files = [self.source.rows[row].sample for row, _ in found]
                yield torch.stack([clip for _, clip in found]), [self.listing.prompt(file) for file in files], files

    def report(self) -> str:
        """Sentences on files that were left out or could not be read, empty if there are none."""
        return " ".join(filter(None, (*self.listing.problems, self.source.report())))
