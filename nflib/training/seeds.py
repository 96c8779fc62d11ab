"""Seeds that depend only on the place in a run, such as the step, so that a resumed run repeats the original."""

from __future__ import annotations

import numpy as np
import torch

from nflib.random import seed_torch

EPOCH, AUGMENTATION, OBJECTIVE, REFRESH, VALIDATION, DATA = range(6)


def derived_seed(seed: int, *path: int) -> int:
    """A 63-bit seed for the place `path` (a purpose, a step or epoch, a rank) of the run seeded by `seed`."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def derived_generator(seed: int, *path: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded by `derived_seed`."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, *path))


def seeded_generator(seed: int, *path: int, device: torch.device | str = "cpu") -> torch.Generator:
    """As `derived_generator`, with torch's global generators seeded likewise, for what knows only those."""
    number = derived_seed(seed, *path)
    seed_torch(number)
    return torch.Generator(device=device).manual_seed(number)
