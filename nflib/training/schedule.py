"""Learning-rate schedule: a linear warm-up, then half a cosine down to a floor."""

from __future__ import annotations

import math

from nflib.training.config import TrainingConfig


def progress(config: TrainingConfig, step: int, seconds: float) -> float:
    """Share of the run that is behind us, in [0, 1]: the larger of its shares in steps and in seconds."""
    by_steps = step / config.max_steps if config.max_steps is not None else 0.0
    by_seconds = seconds / config.max_seconds if config.max_seconds is not None else 0.0
    return min(max(by_steps, by_seconds), 1.0)


def learning_rate(config: TrainingConfig, step: int, seconds: float) -> float:
    """Learning rate of step number `step` (the first is 0) that starts after `seconds`.

    With p the progress of the run, w the share of the warm-up and f the floor: rate = peak * ramp * (f + (1 -
    f) * (1 + cos(pi * (p - w) / (1 - w))) / 2), where the ramp rises linearly to 1 during the warm-up.
    """
    done = progress(config, step, seconds)
    warmup_steps, warmup = config.warmup_steps, 0.0
    if warmup_steps is None and config.max_seconds is None and config.max_steps is not None:
        warmup_steps = round(config.warmup_fraction * config.max_steps)
    if warmup_steps is None:
        warmup = config.warmup_fraction
        # The first step would otherwise have rate zero, and be lost.
        ramp = 1.0 if warmup == 0 else min(max(done / warmup, 1e-3), 1.0)
    else:
        ramp = min((step + 1) / max(warmup_steps, 1), 1.0)
        if config.max_steps is not None and config.max_seconds is None:
            warmup = min(warmup_steps / config.max_steps, 1.0)
    phase = min(max(done - warmup, 0.0) / (1 - warmup), 1.0) if warmup < 1 else 0.0
    floor = config.final_learning_rate
    return config.learning_rate * ramp * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * phase)))
