"""The latents of a folder's clips, encoded once and kept on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from nflib.io import write_json
from video.data.cache_folder import damaged, open_cache, read_tensors, write_tensors
from video.data.dataset import ClipFolder
from video.data.fingerprints import fingerprint
from video.data.rows import RowsByShape
from video.data.samples import Listing, skip_report
from video.data.sizes import Bucket
from video.latents.latents import Latents

DESCRIPTION = "latents.json"
COMPLETE = "latents-complete.json"
SHARDS = "latents-*"
# To be raised when other latents come of the same files, as by a mistake in decoding that is mended: old ones are then
# refused.
VERSION = 2


class LatentCache:
    """Latents ``(B, t, c, h, w)`` of a folder's clips, kept on disk, as training data (`nflib.training.BatchSource`).

    Files are mapped into memory: what is read is what is asked for.

    Args:
        folder: written by `encode_clip_folder`.
        listing: of the same clips.
        text: makes the "context" of batches from prompts, as a `PromptCache` does; without, class numbers are that of
            labels.

    Raises:
        FileNotFoundError: nothing is kept in the folder, or not all of it.
        ValueError: a file in it is damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        listing: Listing,
        text: Callable[[Sequence[str]], Tensor | None] | None = None,
    ) -> None:
        folder = Path(folder)
        if not (folder / COMPLETE).is_file():
            raise FileNotFoundError(f"{folder} holds no latents, or not all of them; encode the clips first.")
        self.listing, self.text = listing, text
        contents = _contents(folder / COMPLETE)
        self.skipped: dict[str, str] = contents["skipped"]
        self._latents: list[Tensor] = []
        samples: list[Tensor] = []
        for name in contents["files"]:
            latents, numbers, skipped = _read(folder / name)
            self.skipped |= skipped
            if len(numbers):
                self._latents.append(latents)
                samples.append(numbers)
        if not samples:
            raise ValueError(f"{folder} has no latents, since no clip could be decoded. {self.report()}")
        self.samples = torch.cat(samples)
        self._shards = RowsByShape([len(numbers) for numbers in samples])
        shapes = [(tuple(latents.shape[1:]), len(latents)) for latents in self._latents]
        grouped = [(shape, [count for _, count in group]) for shape, group in groupby(shapes, lambda pair: pair[0])]
        self.shapes = [shape for shape, _ in grouped]
        self.by_shape = RowsByShape([sum(counts) for _, counts in grouped])

    @property
    def shape_ends(self) -> list[int]:
        """How many rows there are up to the end of each shape; see `nflib.training.BatchSource`."""
        return self.by_shape.ends

    def __len__(self) -> int:
        return len(self.samples)

    def report(self) -> str:
        """One sentence on the files that had to be skipped, empty if there are none."""
        return skip_report(self.skipped, len(self.listing))

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """ "inputs" of one shape and their "context", if any: see `RowsByShape.of_one_shape`."""
        _, indices = self.by_shape.of_one_shape(indices)
        inputs = torch.stack([self._row(index) for index in indices.tolist()]).float()
        return {"inputs": inputs} | self.listing.context(self.samples[indices].tolist(), self.text)

    def _row(self, index: int) -> Tensor:
        shard = self._shards.shape_of(index)
        return self._latents[shard][index - self._shards.ends[shard]]


def encode_clip_folder(
    clips: ClipFolder,
    latents: Latents,
    folder: str | os.PathLike[str],
    *,
    frames_at_once: int = 64,
    shard_bytes: int = 1 << 28,
    dtype: torch.dtype = torch.float32,
    renew: bool = False,
) -> LatentCache:
    """Encode all clips of a folder, unless that has been done; interrupted, it goes on with the file it was at.

    Args:
        clips: with their sizes and rate.
        latents: the autoencoder.
        folder: made unless it is there.
        frames_at_once: how many frames are encoded at once, if one clip has not more.
        shard_bytes: about how much of the latents is held in memory, and then written into one file.
        dtype: in which latents are kept.
        renew: begin anew where the folder holds latents of other files, of other sizes or by another autoencoder.

    Raises:
        ValueError: it does, without `renew`; the autoencoder cannot encode clips of these sizes; a file is damaged.
        OSError: another run is at work in the folder, or it cannot be written.
    """
    folder = Path(folder)
    wanted = {
        "set of files": clips.listing.fingerprint(),
        "sizes or rate": json.dumps(clips.settings),
        "version of reading and encoding files": str(VERSION),
        "autoencoder": fingerprint(latents),
        "dtype": str(dtype),
        "size of its files": str(shard_bytes),
    }
    with open_cache(folder, DESCRIPTION, wanted, SHARDS, renew):
        if not (folder / COMPLETE).is_file():
            names = []
            pieces = _pieces(clips, latents, shard_bytes // dtype.itemsize)
            for number, rows in enumerate(tqdm(pieces, "encoding clips", disable=len(clips) <= 1024)):
                names.append(SHARDS.replace("*", f"{number:05d}.safetensors"))
                if not (folder / names[-1]).is_file():
                    write_tensors(folder / names[-1], *_encoded(clips, rows, latents, frames_at_once, dtype))
            write_json(folder / COMPLETE, {"files": names, "skipped": clips.skipped})
    return LatentCache(folder, clips.listing, clips.text)


def _pieces(clips: ClipFolder, latents: Latents, numbers: int) -> list[list[int]]:
    """The rows of each file: of one bucket, and of so many numbers, or a single one."""
    pieces, end = [], 0
    for bucket, count in zip(clips.shapes, clips.by_shape.counts, strict=True):
        row = torch.Size(_latent_shape(latents, bucket, clips.channels)).numel()
        size = max(numbers // row, 1)
        pieces += [list(range(start, min(start + size, end + count))) for start in range(end, end + count, size)]
        end += count
    return pieces


def _latent_shape(latents: Latents, bucket: Bucket, channels: int) -> tuple[int, ...]:
    return latents.latent_shape((bucket.frames, channels, bucket.height, bucket.width))


def _encoded(
    clips: ClipFolder, rows: list[int], latents: Latents, frames_at_once: int, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, dict[str, str]]]:
    """What one file holds, and what of its rows was "skipped", since it could not be decoded."""
    bucket = clips.rows[rows[0]].bucket
    coded = torch.empty(len(rows), *_latent_shape(latents, bucket, clips.channels), dtype=dtype)
    samples: list[int] = []
    waiting: list[Tensor] = []

    def encode() -> None:
        coded[len(samples) - len(waiting) : len(samples)] = latents.encode(torch.stack(waiting)).to("cpu", dtype)
        waiting.clear()

    for index, clip in clips.decoded(rows):
        samples.append(clips.rows[index].sample)
        waiting.append(clip)
        if (len(waiting) + 1) * bucket.frames > frames_at_once:
            encode()
    if waiting:
        encode()
    names = {clips.listing.samples[clips.rows[index].sample].name for index in rows}
    skipped = {name: reason for name, reason in clips.skipped.items() if name in names}
    return {"latents": coded[: len(samples)], "samples": torch.tensor(samples, dtype=torch.long)}, {"skipped": skipped}


def _contents(path: Path) -> dict[str, Any]:
    """The names of the files, and what was skipped."""
    try:
        contents: dict[str, Any] = json.loads(path.read_text())
        return {"files": list(contents["files"]), "skipped": dict(contents["skipped"])}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error


def _read(path: Path) -> tuple[Tensor, Tensor, dict[str, str]]:
    tensors, beside = read_tensors(path)
    try:
        return tensors["latents"], tensors["samples"], beside["skipped"]
    except KeyError as error:
        raise damaged(path, error) from error
