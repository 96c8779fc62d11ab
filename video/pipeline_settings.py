"""What a video model knows beside its networks: sizes, noise, and what later windows of a clip are told."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from video.errors import first_line

SETTINGS = "model.json"


@dataclass(frozen=True)
class PipelineSettings:
    """What a `Pipeline` knows beside its parts.

    clip_shape: ``(T, C, H, W)`` of the clips it was trained on. noise: standard deviation added to latents in training.
    frame_rate: frames a second. later: a regular expression and what takes its place in the prompts of what continues a
    clip, where the model was trained on prompts that tell of the beginning of clips alone. anchored: the same for
    windows that have the clip's first frame in the place of the oldest of those before them, so that what it shows is
    never forgotten, where the model was trained on such clips (None: windows have the frames before them alone).
    """

    clip_shape: tuple[int, int, int, int]
    noise: float
    frame_rate: float = 8.0
    later: tuple[str, str] | None = None
    anchored: tuple[str, str] | None = None

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
            document = json.loads(path.read_text())
            later, anchored = document["later"], document.get("anchored")
            return cls(
                tuple(document["clip_shape"]),
                float(document["noise"]),
                float(document["frame_rate"]),
                None if later is None else (later[0], later[1]),
                None if anchored is None else (anchored[0], anchored[1]),
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is damaged ({first_line(error)}); fetch or save it again.") from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write model.json into `folder`."""
        (Path(folder) / SETTINGS).write_text(json.dumps(asdict(self), indent=1) + "\n")


def _rewritten(prompt: str, rule: tuple[str, str] | None) -> str:
    return prompt if rule is None else re.sub(rule[0], rule[1], prompt, count=1)
