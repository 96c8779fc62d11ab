"""The options that commands share: which model, how clips are drawn, and where they are written."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nflib.decoding import Decoder, Sequential
from video.flows.decoding import FramesAtOnce
from video.gallery import Entry, write_gallery
from video.media import check_suffix, write_clip
from video.pipeline import Pipeline

# Side of a picture in pixels that is easy to see.
VISIBLE = 128

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelOptions:
    """A trained model.

    Args:
        model: its folder; default: the shipped one of moving digits.
        device: cpu, cuda or mps.
    """

    model: Path | None = None
    device: str = "cpu"

    def load(self) -> Pipeline:
        """Raises FileNotFoundError or ValueError where there is none, or it is damaged."""
        return Pipeline.load(self.model, self.device)


@dataclass(frozen=True)
class DrawingOptions:
    """How clips are drawn.

    Args:
        guidance: weight of classifier-free guidance; 0 for none.
        denoise: how noise is taken off the latents: score, learned or none.
        overlap: latent frames of a window that the next one is given; default half of it, 0 for a single window.
        decoding: sequential (token by token), jacobi (a few frames at once, from the one before), or auto: the faster.
        seed: of the random numbers.
    """

    guidance: float = 0.0
    denoise: str = "score"
    overlap: int | None = None
    decoding: str = "auto"
    seed: int = 0

    def decoder(self, pipeline: Pipeline) -> Decoder:
        """How the flow is inverted; raises ValueError for a name that is none."""
        decoders: dict[str, Decoder] = {
            "auto": pipeline.decoding,
            "sequential": Sequential(),
            "jacobi": FramesAtOnce(pipeline.flow._transform.frame_length, largest_batch=sys.maxsize),
        }
        if self.decoding not in decoders:
            raise ValueError(f"decoding must be one of {', '.join(decoders)}, got {self.decoding!r}.")
        return decoders[self.decoding]


@dataclass(frozen=True)
class OutputOptions:
    """Where clips are written.

    Args:
        out: .mp4 (.mkv, .webm …), .gif, or .png for a strip of frames; several clips are numbered.
        gallery: a page of HTML with all clips, prompts and likelihoods.
    """

    out: Path | None = None
    gallery: Path | None = None

    def check(self) -> None:
        """Mistakes that would otherwise be found after all the work; raises ValueError or FileNotFoundError."""
        if self.out is None and self.gallery is None:
            raise ValueError("nothing is to be written; name a file by --out, or a page by --gallery.")
        if self.out is not None:
            check_suffix(self.out)
        for path in (self.out, self.gallery):
            if path is not None and not path.parent.is_dir():
                raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}; make it first.")

    def write(
        self,
        pipeline: Pipeline,
        clips: Tensor,
        prompts: Sequence[str],
        *,
        seed: int,
        heading: Mapping[str, object],
        source: tuple[Tensor, str] | None = None,
    ) -> list[Path]:
        """Write the clips, numbered if there are several, and the page, on which a source and its prompt come first."""
        enlarge = max(VISIBLE // clips.shape[-1], 1)
        rate, written = pipeline.settings.frame_rate, []
        if self.out is not None:
            for number, clip in enumerate(clips, 1):
                path = self.out if len(clips) == 1 else self.out.with_stem(f"{self.out.stem}-{number}")
                written.append(write_clip(clip, path, rate, enlarge=enlarge))
                log.info("Written %s: %r.", path, prompts[number - 1])
        if self.gallery is not None:
            if source is not None:
                clips, prompts = torch.cat([source[0].to(clips), clips]), [source[1], *prompts]
            nats = pipeline.nats_per_dim(clips, prompts, seed=seed)
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
        if not prompts.is_file():
            raise FileNotFoundError(f"there is no file {prompts}; give a text file with a prompt a line.")
        try:
            lines = prompts.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{prompts} is no text in UTF-8; give a text file with a prompt a line.") from error
        found += [line.strip() for line in lines if line.strip()]
        if not found:
            raise ValueError(f"{prompts} has no prompt; write one a line.")
    return found or [""]
