"""The flows of golden files, and the decoders that must all find what is recorded."""

from __future__ import annotations

import functools

from torch import Tensor

from nflib import Flow
from nflib.decoding import GaussSeidelJacobi, Jacobi, PreviousFrame, Sequential
from tests.recorded import recorded
from video.conversion.released import starflow_from_state_dict

DECODERS = {
    "sequential": Sequential(),
    "jacobi": Jacobi(1e-6),
    "gauss-seidel-jacobi": GaussSeidelJacobi(7, 1e-6),
    "previous frame": Jacobi(1e-6, initial_guess=PreviousFrame(16)),
}


@functools.cache
def released(name: str) -> Flow:
    """The flow of a golden STARFlow file."""
    golden = recorded(name)
    return starflow_from_state_dict(golden.document["config"], golden.weights, num_frames=3)


def tokens(flow: Flow, events: Tensor) -> Tensor:
    """Noise in the shape of events, as the tokens that the flow's base density is about."""
    return flow._transform.patches(events)[0]
