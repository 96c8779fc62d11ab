"""What tests/golden holds: numbers recorded from the reference implementations, and small flows of ours."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nflib import Flow
from nflib.decoding import GaussSeidelJacobi, Jacobi, PreviousFrame, Sequential
from video import STARFlow, STARFlowV
from video.conversion.released import starflow_from_state_dict

GOLDEN = Path(__file__).parents[1] / "golden"
DECODERS = {
    "sequential": Sequential(),
    "jacobi": Jacobi(1e-6),
    "gauss-seidel-jacobi": GaussSeidelJacobi(7, 1e-6),
    "previous frame": Jacobi(1e-6, initial_guess=PreviousFrame(16)),
}


class Recorded(NamedTuple):
    """A golden file: the reference's configuration and what else the document says, weights, inputs and outputs."""

    document: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@functools.cache
def recorded(name: str, part: str = "") -> Recorded:
    """The golden file of a name; with `part`, what stands in it under that heading."""
    document = json.loads((GOLDEN / f"{name}.json").read_text())
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "inputs": {}, "outputs": {}}
    for key, value in load_file(GOLDEN / f"{name}.safetensors").items():
        if key.startswith(part):
            group, rest = key[len(part) :].removeprefix("/").split("/", 1)
            groups[group][rest] = value
    return Recorded(document, **groups)


@functools.cache
def released(name: str) -> Flow:
    """The flow of a golden STARFlow file."""
    golden = recorded(name)
    return starflow_from_state_dict(golden.document["config"], golden.weights, num_frames=3)


def tokens(flow: Flow, events: Tensor) -> Tensor:
    """Noise in the shape of events, as the tokens that the flow's base density is about."""
    return flow._transform.patches(events)[0]


def perturbed(module: nn.Module, scale: float = 0.1) -> nn.Module:
    """The module with noise added to all parameters: output layers start at zero, where every map is the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def small_image_flow(**settings: Any) -> STARFlow:
    arguments = {"layers_per_block": [1, 1, 2], "text_length": 3, "text_channels": 10, "layer": {"head_dim": 20}}
    return perturbed(STARFlow((2, 4, 4), channels=40, **{**arguments, **settings}))


def small_video_flow(**settings: Any) -> STARFlowV:
    arguments = {
        "layers_per_block": [1, 1],
        "text_length": 3,
        "text_channels": 10,
        "layer": {"head_dim": 20},
        "denoiser": {"num_layers": 2, "past": 1},
    }
    return perturbed(STARFlowV((3, 2, 2, 4), channels=40, **{**arguments, **settings}))
