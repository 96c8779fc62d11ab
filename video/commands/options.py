"""The options that commands share: which model, how clips are drawn, and where they are written."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nflib.decoding import Decoder, Jacobi, Sequential
from nflib.io import check_writable, read_lines
from video.flows.decoding import TOLERANCE, FramesAtOnce
from video.gallery import Entry, write_gallery
from video.media import VIDEO, check_path, grid, open_clip, read_clip, write_clip
from video.pipeline import Pipeline

# Side of a picture in pixels that is easy to see.
VISIBLE = 128

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelOptions:
    """A trained model.

    Args:
        model: its folder, or the output of the run that trained it; default: the shipped one of moving digits.
        device: cpu, cuda or mps.
        aspect: width to height, such as 16:9, of as many pixels as in training; default: as in training.
    """

    model: Path | None = None
    device: str = "cpu"
    aspect: str | None = None

    def load(self) -> Pipeline:
        """Raises FileNotFoundError or ValueError where there is none, or it is damaged."""
        pipeline = Pipeline.load(self.model, self.device)
        if self.aspect is not None:
            pipeline = pipeline.at_aspect(self.aspect)
            height, width = pipeline.settings.clip_shape[2:]
            log.info("At %s frames are of %d × %d.", self.aspect, width, height)
        return pipeline


@dataclass(frozen=True)
class DrawingOptions:
    """How clips are drawn.

    Args:
        guidance: weight of classifier-free guidance, 0 for none; default: the model's.
        denoise: how noise is taken off the latents: score, learned or none; default: the model's.
        overlap: latent frames of a window that the next one is given, 0 for a single window; default: the model's.
        decoding: sequential (token by token), jacobi (a few frames at once, from the one before, or all tokens of an
            image), or auto: the faster of them for clips, and sequential for images.
        seed: of the random numbers.
    """

    guidance: float | None = None
    denoise: str | None = None
    overlap: int | None = None
    decoding: str = "auto"
    seed: int = 0

    def heading(self, pipeline: Pipeline) -> dict[str, object]:
        """What pages say of it."""
        settings = pipeline.settings
        return {
            "guidance": settings.guidance if self.guidance is None else self.guidance,
            "denoising": settings.denoise if self.denoise is None else self.denoise,
        }

    def settings(self, pipeline: Pipeline) -> dict[str, Any]:
        """What `Pipeline.generate` and `edit` take; raises ValueError as `decoder` does."""
        return {**vars(self), "decoding": self.decoder(pipeline)}

    def decoder(self, pipeline: Pipeline) -> Decoder:
        """How the flow is inverted; raises ValueError for a name that is none."""
        decoders: dict[str, Decoder] = {
            "auto": pipeline.decoding,
            "sequential": Sequential(),
            "jacobi": FramesAtOnce(pipeline.flow.frame_length, largest_batch=sys.maxsize)
            if pipeline.window > 1
            else Jacobi(TOLERANCE),
        }
        if self.decoding not in decoders:
            raise ValueError(f"decoding must be one of {', '.join(decoders)}, got {self.decoding!r}.")
        return decoders[self.decoding]


@dataclass(frozen=True)
class OutputOptions:
    """Where clips are written.

    Args:
        out: .mp4 (.mkv, .webm …), .gif, or .png for a strip of frames; several clips are numbered, and several images
            one grid as .png.
        gallery: a page of HTML with all clips, prompts and likelihoods.
    """

    out: Path | None = None
    gallery: Path | None = None

    def check(self) -> None:
        """Mistakes that would otherwise be found after all the work; raises ValueError or OSError."""
        if self.out is None and self.gallery is None:
            raise ValueError("nothing is to be written; name a file by --out, or a page by --gallery.")
        if self.out is not None:
            check_path(self.out)
        for path in (self.out, self.gallery):
            if path is not None and not path.parent.is_dir():
                raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}; make it first.")
            if path is not None and path.is_dir():
                raise ValueError(f"{path} is a folder; name a file, in it or elsewhere.")
            if path is not None:
                check_writable(path.parent)
        if self.gallery is not None and self.gallery.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"{self.gallery} is to be a page: let its name end in .html.")

    def write(
        self,
        pipeline: Pipeline,
        pieces: Iterable[Tensor],
        prompts: Sequence[str],
        *,
        seed: int,
        heading: Mapping[str, object],
        source: tuple[Tensor, str] | None = None,
    ) -> list[Path]:
        """Write clips ``(B, T, C, H, W)`` that come piece by piece, as they come, numbered if there are several.

        Then the page, on which a source and its prompt come first.
        """
        pieces = iter(pieces)
        first, second = next(pieces), next(pieces, None)
        pieces = itertools.chain([first] if second is None else [first, second], pieces)
        enlarge = max(VISIBLE // first.shape[-1], 1)
        suffix = "" if self.out is None else self.out.suffix.lower()
        if suffix in VIDEO and any(enlarge * side % 2 for side in first.shape[-2:]):
            enlarge += 1  # videos have even sizes
        rate, written = pipeline.settings.frame_rate, []
        shown: list[Tensor] = []
        if self.gallery is not None:
            shown = list(pieces)
            pieces = shown
        if self.out is not None:
            are_images = first.shape[1] == 1 and second is None and suffix == ".png"
            if are_images and len(first) > 1:
                written.append(write_clip(grid(first), self.out, rate, enlarge=enlarge))
            else:
                written += _write_clips(pieces, len(first), self.out, rate, enlarge)
            told = ", ".join(repr(prompt) for prompt in dict.fromkeys(prompts) if prompt)
            log.info("Written %s%s.", ", ".join(map(str, written)), f": {told}" if told else "")
        if self.gallery is not None:
            clips = torch.cat(shown, dim=1)
            if source is not None:
                clips, prompts = torch.cat([source[0].to(clips), clips]), [source[1], *prompts]
            nats = pipeline.nats_per_dim(pipeline.filled(clips), prompts, seed=seed)
            entries = [Entry(prompt, clip, values) for prompt, clip, values in zip(prompts, clips, nats, strict=True)]
            written.append(write_gallery(entries, self.gallery, rate, heading, enlarge=enlarge))
            log.info("Written %s: %d clips.", self.gallery, len(clips))
        return written


def read_prompts(prompt: Sequence[str] | None, prompts: Path | None) -> list[str]:
    """Prompts given one by one, then those of a text file, one a line; of neither, the empty one.

    Raises FileNotFoundError or ValueError for a file that is none.
    """
    found = list(prompt or ())
    if prompts is not None:
        found += [line.strip() for line in read_lines(prompts, "a prompt") if line.strip()]
        if not found:
            raise ValueError(f"{prompts} has no prompt; write one a line.")
    return found or [""]


def read_filled(pipeline: Pipeline, clip: Path) -> Tensor:
    """A clip ``(1, T, C, H, W)`` as a model takes it, without trailing frames that do not complete a latent frame.

    Raises as `read_clip` does.
    """
    frames = read_clip(clip, pipeline.settings.clip_shape[1:], pipeline.settings.frame_rate).unsqueeze(0)
    filled = pipeline.filled(frames)
    if (left := frames.shape[1] - filled.shape[1]) > 0:
        log.info(
            "%s: the last %d of %d frames do not complete a latent frame and are left out.", clip, left, frames.shape[1]
        )
    return filled


def _write_clips(pieces: Iterable[Tensor], number: int, out: Path, rate: float, enlarge: int) -> list[Path]:
    """Write so many clips that come piece by piece into numbered files, or one into `out`."""
    paths = [out if number == 1 else out.with_stem(f"{out.stem}-{row}") for row in range(1, number + 1)]
    with ExitStack() as stack:
        files = [stack.enter_context(open_clip(path, rate, enlarge=enlarge)) for path in paths]
        for piece in pieces:
            for add, clip in zip(files, piece, strict=True):
                add(clip)
    return paths
