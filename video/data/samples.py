"""One image or clip of a user's, and a list of them with what is known of each."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import torch
from PIL import Image
from torch import Tensor

# Formats that Pillow knows by name, but decodes by other programs alone, or not at all.
UNREAD = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
# By suffix, in lower case: what Pillow reads, some of it moving pictures, and what PyAV reads.
IMAGES = frozenset(
    suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN and name not in UNREAD
) | {".mpo"}  # which Pillow opens as JPEG
VIDEOS = frozenset(
    (".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob")
    + (".ts", ".mts", ".m2t", ".m2ts", ".wmv", ".asf", ".flv", ".f4v", ".ogv", ".3gp", ".3g2", ".y4m", ".mxf", ".dv")
    + (".mj2", ".rm", ".rmvb", ".nut", ".ivf")
)
CONDITIONS = ("caption", "label", "none")
NAMED = 3


@dataclass(frozen=True)
class Sample:
    """An image or a clip.

    Args:
        name: of its file within the folder, parts set apart by "/"; in a tar shard, the shard's name and the member's.
        path: of the file, or of the shard.
        size: bytes.
        modified: when the file, or the shard, was last written, seconds since 1970.
        offset: where in the shard its bytes begin; None outside of shards.
        caption: what it shows, in words; None where nothing says.
        label: the name of its class; None where nothing says.
    """

    name: str
    path: Path
    size: int
    modified: int
    offset: int | None = None
    caption: str | None = None
    label: str | None = None

    @property
    def is_image(self) -> bool:
        """Whether Pillow is to read it, rather than PyAV."""
        return Path(self.name).suffix.lower() in IMAGES

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Its bytes; those of a member of a shard are read where they lie."""
        if self.offset is None:
            with self.path.open("rb") as file:
                yield file
            return
        with tarfile.open(self.path, "r:") as shard:
            member = tarfile.TarInfo(self.name)
            member.offset_data, member.size = self.offset, self.size
            content = shard.extractfile(member)
            assert content is not None  # a TarInfo is a regular file's unless it says otherwise
            with content:
                yield content


@dataclass(frozen=True)
class Listing:
    """The images and clips of a folder, in the order of their names, and what they are conditioned on.

    Args:
        folder: where they are.
        samples: at least one.
        condition: what a flow is told of them: "caption", "label" or "none".
        classes: the labels, in the order of their numbers.
        problems: sentences on what was left out.
    """

    folder: Path
    samples: tuple[Sample, ...]
    condition: str
    classes: tuple[str, ...]
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def prompt(self, number: int) -> str:
        """The prompt of a sample, by its number: its caption or label, or empty for none."""
        sample = self.samples[number]
        return {"caption": sample.caption, "label": sample.label}.get(self.condition) or ""

    def class_number(self, number: int) -> int:
        """The number of a sample's class; -1 without a label."""
        label = self.samples[number].label
        return self.classes.index(label) if label in self.classes else -1

    def context(
        self, numbers: Sequence[int], text: Callable[[Sequence[str]], Tensor | None] | None
    ) -> dict[str, Tensor]:
        """The "context" of samples in a batch, if any.

        Args:
            numbers: of the samples.
            text: makes it from their prompts; None takes class numbers, where the condition is labels.
        """
        context = None
        if text is not None:
            context = text([self.prompt(number) for number in numbers])
        elif self.condition == "label":
            context = torch.tensor([self.class_number(number) for number in numbers])
        return {} if context is None else {"context": context}

    def fingerprint(self) -> str:
        """A hash of the files' names, sizes and times, whatever is said of them."""
        files = [(sample.name, sample.size, sample.modified) for sample in self.samples]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()

    def split(self, share: float = 0.1) -> tuple[Listing, Listing]:
        """Split into a part to train on, and one of about `share` of the files to validate by.

        A file's name alone decides, by its hash, so that files keep their part when others come or go. Where that would
        leave a part empty, the file closest to it moves there.

        Raises:
            ValueError: a share out of range, or a single file.
        """
        if not 0 < share < 1:
            raise ValueError(f"the share of files to validate by must lie between 0 and 1, got {share}.")
        if len(self) < 2:
            raise ValueError(f"{self.folder} has a single image or clip; a part to validate by takes a second one.")
        places = [_place(sample.name) for sample in self.samples]
        share = min(max(share, sorted(places)[0]), sorted(places)[-2])
        parts = [[], []]  # type: list[list[Sample]]
        for sample, place in zip(self.samples, places, strict=True):
            parts[place <= share].append(sample)
        training, validation = (replace(self, samples=tuple(part)) for part in parts)
        return training, validation


def counted(names: Sequence[str], what: str = "file") -> str:
    """How many there are, and the names of the first few.

    >>> counted(["a.png", "b.png", "c.png", "d.png"])
    '4 files (a.png, b.png, c.png, …)'
    """
    named = ", ".join([*names[:NAMED], "…"] if len(names) > NAMED else names)
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'} ({named})"


def skip_report(skipped: Mapping[str, str], total: int) -> str:
    """Which of so many files were skipped, by name, and the reasons for the first few; empty if there are none."""
    if not skipped:
        return ""
    return " ".join([f"Skipped of {total}: {counted(list(skipped))}.", *list(skipped.values())[:NAMED]])


def _place(name: str) -> float:
    """A number in 0 … 1 that a name always has."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48
