"""What weighted samples are worth, in figures and in sentences, and what to do where that is too little."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from nflib.montecarlo import SMCSamples, WeightedSamples
from nflib.montecarlo.weighted_samples import MAX_PARETO_K

# Published codes remove this share of the largest weights before they report an effective sample size.
PUBLISHED_TRUNCATION = 0.002
# Worth fewer independent draws than that, no error bar can be trusted.
FEWEST = 50
# A flow whose draws are worth that share needs no more than more of them.
GOOD_SHARE = 0.05


def summarize(samples: WeightedSamples) -> dict[str, Any]:
    """The figures of `WeightedSamples.summary`; for importance sampling also the effective sample size as published
    codes report it, for sequential Monte Carlo the history of the run."""
    if isinstance(samples, SMCSamples):
        return samples.summary() | {"history": samples.history.summary()}
    truncated = samples.truncate(PUBLISHED_TRUNCATION)
    return samples.summary() | {
        "truncated": {
            "removed_fraction": PUBLISHED_TRUNCATION,
            "effective_sample_size_fraction": truncated.effective_sample_size_fraction,
        }
    }


def describe(summary: dict[str, Any]) -> Iterator[str]:
    """What `summarize` gave, with "molecule" and "temperature_K", as sentences for a user."""
    k = "unknown" if summary["pareto_k"] is None else f"{summary['pareto_k']:.2f}"
    yield (
        f"{summary['num_samples']} samples of {summary['molecule']} at {summary['temperature_K']:g} K: effective "
        f"sample size {summary['effective_sample_size']:.0f} "
        f"({summary['effective_sample_size_fraction']:.3f} of them), worth "
        f"{summary['effective_num_ancestors']:.0f} independent draws, Pareto k {k}, {summary['num_rejected']} rejected."
    )
    if "history" in summary:
        history = summary["history"]
        yield (
            f"{len(history['inverse_temperatures'])} temperatures, {history['num_evaluations'][-1]} energies, mean "
            f"acceptance {np.mean([value or 0.0 for value in history['acceptance']]):.2f}; the particles descend from "
            f"{history['num_ancestors'][-1]} draws."
        )
    if "truncated" in summary:
        truncated = summary["truncated"]
        yield (
            f"Without the largest {100 * truncated['removed_fraction']:g} % of weights, as published codes report it: "
            f"{truncated['effective_sample_size_fraction']:.3f}."
        )
    if summary["warning"]:
        yield summary["warning"]
    yield verdict(summary)


def verdict(summary: dict[str, Any]) -> str:
    """Whether the weights can be used, and if not, which command helps; a sentence or two."""
    reason = unusable(summary)
    if reason is None:
        return "The weights can be used: averages over them have errors that can be trusted."
    if "history" in summary:
        return f"The samples cannot be relied on ({reason}): run smc with more --num_draws, --moves or --final_moves."
    size, number, k = summary["effective_num_ancestors"], summary["num_samples"], summary["pareto_k"]
    if size > GOOD_SHARE * number and (k is None or k <= MAX_PARETO_K):
        needed = 10 * math.ceil(1.2 * FEWEST * number / size / 10)
        return f"The draws are too few for averages with errors ({reason}): draw {needed} or more."
    return (
        f"The weights cannot be used ({reason}): move the samples to the force field with --sampler smc, draw more, or "
        "fit the flow to this molecule with `python -m molecular improve`, or `train --initial` on a simulation of it."
    )


def unusable(summary: dict[str, Any]) -> str | None:
    """Why averages over the weights have no error that can be trusted; None where they have one."""
    if summary["effective_num_ancestors"] < FEWEST:
        return f"they are worth fewer than {FEWEST} independent draws"
    return None if summary["refusal"] is None else f"Pareto k is above {MAX_PARETO_K}"
