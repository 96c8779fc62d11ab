"""How many threads of the processor are worth their while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from video.pipeline import Pipeline

# Weights times clips: with less to do in a step, threads wait for each other longer than they work.
LITTLE = 20_000_000


@contextmanager
def threads_for(pipeline: Pipeline, num_clips: int) -> Iterator[None]:
    """While the block lasts, torch has one thread if so many clips of a pipeline, made at once, are little work.

    A step of decoding is a row of small operations, after each of which threads wait for the slowest: where other
    programs keep the processor busy, several of them take many times as long as one.
    """
    threads = torch.get_num_threads()
    if num_clips * sum(parameter.numel() for parameter in pipeline.flow.parameters()) <= LITTLE:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
