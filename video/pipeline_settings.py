"""What a pipeline knows beside its networks: sizes, noise, and the prompts of a clip's later windows."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from nflib.io import write_json
from video.errors import first_line

SETTINGS = "model.json"
# Latents have deviation 1: a hundred times that is no noise of a model's.
LARGEST_NOISE = 100.0


@dataclass(frozen=True)
class PipelineSettings:
    """What a `Pipeline` knows beside its parts.

    Args:
        clip_shape: ``(T, C, H, W)`` of the clips it was trained on; of images, T is 1.
        noise: standard deviation added to latents in training.
        frame_rate: frames a second.
        later: a regular expression and what takes its place in the prompts of what continues a clip, where the model
            was trained on prompts that tell of the beginning of clips alone.
        anchored: the same for windows that have the clip's first frame in the place of the oldest of those before them,
            so that what it shows is never forgotten, where the model was trained on such clips (None: windows have the
            frames before them alone).
        later_scale: of the latents of every frame but the first, as released models have it.

    Raises:
        ValueError: numbers that no model has, or expressions that are none.
    """

    clip_shape: tuple[int, int, int, int]
    noise: float
    frame_rate: float = 8.0
    later: tuple[str, str] | None = None
    anchored: tuple[str, str] | None = None
    later_scale: float = 1.0

    def __post_init__(self) -> None:
        sizes = self.clip_shape
        if len(sizes) != 4 or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"clip_shape must be four positive integers (T, C, H, W), got {list(sizes)}.")
        if not 0 <= self.noise <= LARGEST_NOISE:
            raise ValueError(f"noise must lie in 0 … {LARGEST_NOISE:g}, got {self.noise!r}.")
        for name in ("frame_rate", "later_scale"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be a positive number, got {value!r}.")
        for name in ("later", "anchored"):
            rule: tuple[str, str] | None = getattr(self, name)
            try:
                if rule is not None:
                    re.sub(rule[0], rule[1], "")
            except (re.error, TypeError, IndexError) as error:
                raise ValueError(
                    f"{name} must be a regular expression and its replacement, got {rule!r} ({first_line(error)})."
                ) from error

    def later_prompt(self, prompt: str) -> str:
        """The prompt for what continues a clip of this prompt."""
        return _rewritten(prompt, self.later)

    def anchored_prompt(self, prompt: str) -> str:
        """The prompt for what continues a clip of this prompt after its first frame."""
        return _rewritten(prompt, self.anchored)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> PipelineSettings:
        """Those saved in `folder`; raises FileNotFoundError where there are none, ValueError for damaged ones."""
        path = Path(folder) / SETTINGS
        if not path.is_file():
            raise FileNotFoundError(f"there is no {SETTINGS} in {folder}; name the folder of a trained video model.")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            later, anchored = document["later"], document.get("anchored")
            return cls(
                tuple(document["clip_shape"]),
                float(document["noise"]),
                float(document["frame_rate"]),
                None if later is None else (later[0], later[1]),
                None if anchored is None else (anchored[0], anchored[1]),
                float(document.get("later_scale", 1.0)),
            )
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({first_line(error)}); fetch or save it again.") from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write model.json into `folder`."""
        write_json(Path(folder) / SETTINGS, asdict(self))


def _rewritten(prompt: str, rule: tuple[str, str] | None) -> str:
    return prompt if rule is None else re.sub(rule[0], rule[1], prompt, count=1)
