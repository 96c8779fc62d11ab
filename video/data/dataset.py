"""The images and clips of a folder as what flows and autoencoders are trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from video.data.decoding import DamagedFile, as_rate, extent, frames_at, read_frames
from video.data.rows import RowsByShape
from video.data.samples import Listing, skip_report
from video.data.sizes import Bucket, as_clip, fit_frame, nearest_bucket, windows


class Row(NamedTuple):
    """A clip to learn: consecutive frames of a sample.

    Args:
        bucket: its shape.
        sample: number of the sample.
        is_mirrored: left to right.
        start: time at which its first frame is due, seconds.
    """

    bucket: Bucket
    sample: int
    is_mirrored: bool
    start: Fraction


class FolderClips(NamedTuple):
    """Clips of a folder with their prompts (`video.data.CaptionedClips`).

    Args:
        frames: ``(B, T, C, H, W)`` in -1 … 1.
        prompts: one a clip.
        rows: ``(B,)``, the number of each clip in its `ClipFolder`.
    """

    frames: Tensor
    prompts: list[str]
    rows: Tensor

    @property
    def num_given(self) -> Tensor:
        return torch.zeros(len(self.frames), dtype=torch.long)

    @property
    def is_anchored(self) -> Tensor:
        return torch.zeros(len(self.frames), dtype=torch.bool)


class ClipFolder:
    """The images and clips of a folder as training data, decoded when they are asked for.

    It is a `nflib.training.BatchSource` and a `video.data.ClipSource`. An image is a clip of one frame. A clip goes to
    the longest buckets that it fills, of those to the one of the nearest aspect ratio, and gives as many consecutive
    windows as it has. What cannot be decoded is left out, or, where that shows only later, a neighbour takes its place;
    `skipped` has the names and the reasons.

    Args:
        listing: of the folder.
        buckets: the shapes of clips.
        frame_rate: frames a second, to which clips are resampled: each frame is the one that is shown at its time.
        channels: 3, or 1 for grey.
        with_mirrored: all clips once more, mirrored left to right. (Where each is to be mirrored by chance,
            `video.data.sizes.random_flip` is for `fit`'s `augment`.)
        text: makes the "context" of batches from prompts; without, class numbers are that of labels.

    Raises:
        ValueError: no buckets, or settings out of range; when rows are first asked for, if no file fills a bucket.
    """

    def __init__(
        self,
        listing: Listing,
        buckets: Sequence[Bucket],
        *,
        frame_rate: float = 8.0,
        channels: int = 3,
        with_mirrored: bool = False,
        text: Callable[[Sequence[str]], Tensor | None] | None = None,
    ) -> None:
        if not buckets:
            raise ValueError("clips need a bucket to go to; give one or more.")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 3, or 1 for grey, got {channels}.")
        as_rate(frame_rate)
        self.listing = listing
        self.buckets = sorted(set(buckets))
        self.frame_rate = frame_rate
        self.channels = channels
        self.with_mirrored = with_mirrored
        self.text = text
        self.skipped: dict[str, str] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What decides, beside the files, which pixels there are."""
        return {
            "buckets": [list(bucket) for bucket in self.buckets],
            "frame_rate": float(self.frame_rate),
            "channels": self.channels,
            "with_mirrored": self.with_mirrored,
        }

    @cached_property
    def rows(self) -> list[Row]:
        """All clips, sorted by bucket, then by sample; every file is looked into for them, but not decoded."""
        rows = []
        samples = tqdm(self.listing.samples, "looking at files", disable=len(self.listing) <= 4096)
        for number, sample in enumerate(samples):
            try:
                with sample.open() as file:
                    size = extent(file, sample.name, sample.is_image)
            except (DamagedFile, OSError) as error:
                self.skipped[sample.name] = str(error)
                continue
            times = size.times(self.frame_rate)
            bucket = nearest_bucket(self.buckets, len(times), size.height, size.width)
            if bucket is None:
                shortest = self.buckets[0].frames
                self.skipped[sample.name] = f"{sample.name} has {len(times)} of the {shortest} frames of a clip."
                continue
            for is_mirrored in (False, True)[: 1 + self.with_mirrored]:
                rows += [Row(bucket, number, is_mirrored, times[k]) for k in windows(len(times), bucket.frames)]
        if not rows:
            raise ValueError(f"no file in {self.listing.folder} could be used. {self.report()}")
        return sorted(rows)

    @cached_property
    def shapes(self) -> list[Bucket]:
        """The buckets that have rows, in their order."""
        return sorted({row.bucket for row in self.rows})

    @cached_property
    def by_shape(self) -> RowsByShape:
        """Which rows are of which of the `shapes`."""
        counts = Counter(row.bucket for row in self.rows)
        return RowsByShape([counts[shape] for shape in self.shapes])

    @property
    def shape_ends(self) -> list[int]:
        """How many rows there are up to the end of each shape; see `nflib.training.BatchSource`."""
        return self.by_shape.ends

    def __len__(self) -> int:
        return len(self.rows)

    def report(self) -> str:
        """One sentence on the files that had to be skipped, empty if there are none."""
        return skip_report(self.skipped, len(self.listing))

    def clips(self, indices: Tensor) -> FolderClips:
        """The clips of these rows, which are of one bucket; for what cannot be decoded the next one that can.

        Raises:
            ValueError: rows of several buckets, or none of the bucket that can be decoded.
        """
        if len({self.rows[index].bucket for index in indices.tolist()}) > 1:
            raise ValueError("clips of several buckets do not go together; ask for those of one.")
        found = dict(self.decoded(indices.tolist()))
        taken = [self._instead(index, found) for index in indices.tolist()]
        frames = torch.stack([found[index] for index in taken])
        prompts = [self.listing.prompt(self.rows[index].sample) for index in taken]
        return FolderClips(frames, prompts, torch.tensor(taken))

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """ "inputs" ``(B, T, C, H, W)`` of one bucket and their "context", if any: see `RowsByShape.of_one_shape`."""
        _, indices = self.by_shape.of_one_shape(indices)
        clips = self.clips(indices)
        samples = [self.rows[index].sample for index in clips.rows.tolist()]
        return {"inputs": clips.frames} | self.listing.context(samples, self.text)

    def decoded(self, indices: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """The numbers and clips ``(T, C, H, W)`` of rows, in their order, but those that cannot be decoded.

        Windows of one file that follow each other are decoded in one go.
        """
        for (number, bucket, is_mirrored), group in groupby(sorted(set(indices)), self._file):
            sample, wanted = self.listing.samples[number], list(group)
            rate = as_rate(self.frame_rate)
            due = [self.rows[index].start + k / rate for index in wanted for k in range(bucket.frames)]
            try:
                with sample.open() as file, closing(read_frames(file, sample.name, sample.is_image, due[0])) as shown:
                    frames = frames_at(shown, due, sample.name)
                    for index in wanted:
                        pieces = [fit_frame(next(frames), bucket.height, bucket.width) for _ in range(bucket.frames)]
                        clip = as_clip(pieces, self.channels)
                        yield index, clip.flip(-1) if is_mirrored else clip
            except (DamagedFile, OSError) as error:
                self.skipped[sample.name] = str(error)

    def _file(self, index: int) -> tuple[int, Bucket, bool]:
        row = self.rows[index]
        return row.sample, row.bucket, row.is_mirrored

    def _instead(self, index: int, found: dict[int, Tensor]) -> int:
        """This row, or the first after it in its bucket that can be decoded; its clip is in `found` then."""
        shape = self.shapes.index(self.rows[index].bucket)
        count, end = self.by_shape.counts[shape], self.by_shape.ends[shape]
        for further in range(count):
            row = end - count + (index - end + further) % count
            if row not in found and further:
                found |= dict(self.decoded([row]))
            if row in found:
                return row
        raise ValueError(f"no file for {self.rows[index].bucket} can be decoded any more. {self.report()}")
