"""The objective on data that training does not see."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from nflib.random import seeded_generator
from nflib.training.data import Preparation, rank_slice
from nflib.training.fabric import LossModule, process_mean
from nflib.training.seeds import VALIDATION


@torch.no_grad()
def mean_loss(loss: LossModule, preparation: Preparation, batch_size: int, seed: int, fabric: Any) -> float:
    """Mean over all rows of the objective of batches of `batch_size`, with the same random numbers every time.

    The processes share each batch; one that cannot be shared evenly, the last of a shape, is evaluated by all of them.
    """
    source = preparation.source
    total = torch.zeros((), dtype=torch.float64)
    pieces = [
        torch.arange(start, min(start + batch_size, end))
        for first, end in pairwise([0, *getattr(source, "shape_ends", [len(source)])])
        for start in range(first, end, batch_size)
    ]
    for indices in pieces:
        start = int(indices[0])
        part = indices[rank_slice(len(indices), fabric.global_rank, fabric.world_size)]
        generator = seeded_generator(seed, VALIDATION, start, fabric.global_rank, device=fabric.device)
        batch = preparation(source.batch(part), part)
        value, _ = loss(fabric.to_device(batch), generator)
        total += process_mean(fabric, value).double().cpu() * len(indices)
    return float(total / len(source))
