"""Random numbers by generator or seed, and torch's global generators put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["generator_of", "given_generator", "globally_seeded", "normal_like", "seed_torch"]


def given_generator(generator: torch.Generator | None, seed: int | None) -> torch.Generator | None:
    """The generator, or one with this seed; None of neither.

    Raises:
        ValueError: both.
    """
    if generator is not None and seed is not None:
        raise ValueError("pass either a generator or a seed, not both.")
    return generator if seed is None else torch.Generator().manual_seed(int(seed))


def generator_of(generator: torch.Generator | None, seed: int | None) -> torch.Generator:
    """As `given_generator`, but of neither one that is seeded from torch's global generator."""
    return given_generator(generator, seed) or torch.Generator().manual_seed(int(torch.randint(2**62, ())))


def normal_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal numbers of x's shape, dtype and device; where there is a generator, drawn on its device."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)


@contextmanager
def globally_seeded(generator: torch.Generator | None) -> Iterator[None]:
    """While the block lasts, torch's global generators have a seed from `generator`: for what knows no other.

    Without one they stay as they are.
    """
    if generator is None:
        yield
        return
    with torch.random.fork_rng():
        seed_torch(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        yield


def seed_torch(seed: int) -> None:
    """Seed torch's global generators, those of the CPU and of an accelerator where there is one.

    >>> seed_torch(0)
    """
    # Without one torch.manual_seed would remember each call, with its traceback, for one that may come.
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
