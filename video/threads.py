"""How many threads of the processor are worth their while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from nflib.threads import one_thread
from video.pipeline import Pipeline

# Weights times clips: with less to do in a step, threads wait for each other longer than they work.
LITTLE = 20_000_000


@contextmanager
def threads_for(pipeline: Pipeline, num_clips: int) -> Iterator[None]:
    """While the block lasts, torch has one thread if so many clips of a pipeline, made at once, are little work.

    A step of decoding is a row of small operations, after each of which threads wait for the slowest: where other
    programs keep the processor busy, several of them take many times as long as one.
    """
    is_little = num_clips * sum(parameter.numel() for parameter in pipeline.flow.parameters()) <= LITTLE
    with one_thread() if is_little else nullcontext():
        yield
