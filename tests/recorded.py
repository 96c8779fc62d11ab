"""What tests/golden holds: numbers recorded from the reference implementations."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


class Recorded(NamedTuple):
    """A golden file: the reference's configuration and what else the document says, weights, inputs and outputs."""

    document: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def document(name: str) -> dict[str, Any]:
    """The document of a name."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


@functools.cache
def recorded(name: str, part: str = "") -> Recorded:
    """The golden file of a name; with `part`, what stands in it under that heading."""
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "inputs": {}, "outputs": {}}
    for key, value in load_file(GOLDEN / f"{name}.safetensors").items():
        if key.startswith(part):
            group, rest = key[len(part) :].removeprefix("/").split("/", 1)
            groups[group][rest] = value
    return Recorded(document(name), **groups)
