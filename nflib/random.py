"""Random numbers by generator or seed, and torch's global generators put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "derived_generator",
    "derived_seed",
    "drawn_seed",
    "generator_of",
    "given_generator",
    "globally_seeded",
    "normal_like",
    "seed_torch",
    "seeded_generator",
]


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
    return given_generator(generator, seed) or torch.Generator().manual_seed(drawn_seed())


def drawn_seed(generator: torch.Generator | None = None) -> int:
    """A seed for a generator elsewhere, drawn from this one, or from torch's global generator."""
    device = None if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))


def derived_seed(seed: int, *path: int) -> int:
    """A 63-bit seed for the place `path` (a purpose, a step or epoch, a rank) of the run seeded by `seed`.

    It depends on nothing else, so that a run which goes on repeats the original.
    """
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def derived_generator(seed: int, *path: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded by `derived_seed`."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, *path))


def seeded_generator(seed: int, *path: int, device: torch.device | str = "cpu") -> torch.Generator:
    """As `derived_generator`, with torch's global generators seeded likewise, for what knows only those."""
    seed_torch(derived_seed(seed, *path))
    return derived_generator(seed, *path, device=device)


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
        seed_torch(drawn_seed(generator))
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
