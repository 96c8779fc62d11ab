"""What a pipeline knows beside its networks: sizes, noise, and the prompts of a clip's later windows."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import asdict, dataclass, field
from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor

from nflib.errors import first_line
from nflib.io import write_json
from video.latents.levels import dequantised
from video.text.phrases import Phrasing

SETTINGS = "model.json"
# Latents have deviation 1: a hundred times that is no noise of a model's.
LARGEST_NOISE = 100.0
LARGEST_ASPECT = 20
DENOISING = ("score", "learned", "none")


@dataclass(frozen=True)
class PipelineSettings:
    """Settings of a `Pipeline`: sizes, noise, frame rate, prompts, and defaults of sampling.

    Args:
        clip_shape: ``(T, C, H, W)`` of the clips that the model was trained on; of images, T is 1.
        noise: standard deviation of the noise added to latents in training.
        frame_rate: frames a second.
        later: (regular expression, replacement) applied to the prompt of every window but a clip's first, where the
            model was trained on prompts that describe the beginning of clips.
        anchored: the same for windows that are given the clip's first frame, the anchor, and the last frames before
            them, where the model was trained on such clips (None: windows are given the last frames alone).
        later_scale: factor on every latent frame but the first, as in released models.
        phrasing: how prompts are phrased.
        aspect_ratio: what phrases name, such as "16:9".
        guidance: weight of classifier-free guidance where nothing else is said.
        denoise: how noise is taken off where nothing else is said, as for `Pipeline.denoise`.
        overlap: latent frames that each window after the first is given (None: half of it).
        levels: of a flow of dequantised pixels without noise, how many values a pixel has; densities are then those of
            levels, and what is generated has these alone (None: pixels or latents are any numbers).
        pixel_scale: factor on pixels of levels before the flow, as of public TARFlows: see `video.latents.levels`.
        file_levels: how many values a pixel had in the files that a flow of pixels was trained on, with noise or
            without (None: of latents, or not known, as of models saved earlier).

    Raises:
        ValueError: numbers that no model has, or expressions that are none.
    """

    clip_shape: tuple[int, int, int, int]
    noise: float
    frame_rate: float = 8.0
    later: tuple[str, str] | None = None
    anchored: tuple[str, str] | None = None
    later_scale: float = 1.0
    phrasing: Phrasing = field(default_factory=Phrasing)
    aspect_ratio: str | None = None
    guidance: float = 0.0
    denoise: str = "score"
    overlap: int | None = None
    levels: int | None = None
    pixel_scale: float = 1.0
    file_levels: int | None = None

    def __post_init__(self) -> None:
        sizes = tuple(self.clip_shape)
        if len(sizes) != 4 or not all(isinstance(size, Integral) and size > 0 for size in sizes):
            raise ValueError(f"clip_shape must be four positive integers (T, C, H, W), got {list(sizes)}.")
        object.__setattr__(self, "clip_shape", tuple(map(int, sizes)))
        if not 0 <= self.noise <= LARGEST_NOISE:
            raise ValueError(f"noise must lie in 0 … {LARGEST_NOISE:g}, got {self.noise!r}.")
        for name in ("frame_rate", "later_scale", "pixel_scale"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be a positive number, got {value!r}.")
        if self.levels is not None and not (type(self.levels) is int and self.levels > 1 and not self.noise):
            raise ValueError(f"levels must be a number of them, of pixels without noise, got {self.levels!r}.")
        if self.file_levels is not None and not (type(self.file_levels) is int and self.file_levels > 1):
            raise ValueError(f"file_levels must be a number of levels, got {self.file_levels!r}.")
        if not (0 <= self.guidance < math.inf):
            raise ValueError(f"guidance must be zero or positive, got {self.guidance!r}.")
        if self.denoise not in DENOISING:
            raise ValueError(f"denoise must be one of {', '.join(DENOISING)}, got {self.denoise!r}.")
        if self.overlap is not None and not (type(self.overlap) is int and self.overlap >= 0):
            raise ValueError(f"overlap must be a number of latent frames, got {self.overlap!r}.")
        for name in ("later", "anchored"):
            rule: tuple[str, str] | None = getattr(self, name)
            try:
                if rule is not None:
                    pattern, replacement = rule
                    re.sub(pattern, replacement, "")
                    object.__setattr__(self, name, (pattern, replacement))
            except (re.error, TypeError, ValueError, IndexError) as error:
                raise ValueError(
                    f"{name} must be a regular expression and its replacement, got {rule!r} ({first_line(error)})."
                ) from error

    def noisy(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        """Latents as the flow was trained on them: with noise, or of pixels of levels, dequantised."""
        if self.levels is not None:
            return dequantised(latents, self.levels, generator, self.pixel_scale)
        noise = torch.randn(latents.shape, generator=generator, device=generator.device).to(latents)
        return latents + self.noise * noise

    def later_prompt(self, prompt: str) -> str:
        """The prompt for what continues a clip of this prompt."""
        return _rewritten(prompt, self.later)

    def anchored_prompt(self, prompt: str) -> str:
        """The prompt for what continues a clip of this prompt after its first frame."""
        return _rewritten(prompt, self.anchored)

    def phrase(self, prompt: str, *, is_image: bool = False) -> str:
        """The prompt as the model was trained to read it."""
        rate = 0 if is_image else round(self.frame_rate)
        return self.phrasing(prompt, frame_rate=rate, noise=self.noise, aspect_ratio=self.aspect_ratio)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> PipelineSettings:
        """The settings saved in a folder; raises FileNotFoundError for none, ValueError for damaged ones."""
        path = Path(folder) / SETTINGS
        if not path.is_file():
            raise FileNotFoundError(f"there is no {SETTINGS} in {folder}; name the folder of a trained video model.")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            known = {name: document[name] for name in cls.__dataclass_fields__ if name in document}
            return cls(**{**known, "phrasing": Phrasing(**known.get("phrasing", {}))})
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({first_line(error)}); fetch or save it again.") from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write model.json into `folder`."""
        write_json(Path(folder) / SETTINGS, asdict(self))


def _rewritten(prompt: str, rule: tuple[str, str] | None) -> str:
    return prompt if rule is None else re.sub(rule[0], rule[1], prompt, count=1)


def aspect_size(side: float, aspect_ratio: str, multiple: int) -> tuple[int, int]:
    """Height and width of frames of about side² pixels and an aspect ratio.

    Args:
        side: pixels.
        aspect_ratio: width to height, such as "16:9".
        multiple: of which both are multiples.

    Raises:
        ValueError: an aspect ratio that is none.

    >>> aspect_size(256, "16:9", 8)
    (192, 344)
    """
    try:
        wide, high = (float(number) for number in aspect_ratio.split(":"))
    except ValueError:
        wide = high = 0.0
    if not (0 < wide <= LARGEST_ASPECT * high and 0 < high <= LARGEST_ASPECT * wide):
        raise ValueError(f"an aspect ratio is width to height, such as 16:9, got {aspect_ratio!r}.")
    height, width = side * math.sqrt(high / wide), side * math.sqrt(wide / high)
    return max(round(height / multiple), 1) * multiple, max(round(width / multiple), 1) * multiple
