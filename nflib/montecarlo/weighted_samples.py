"""Samples with importance weights, and everything that is reported about them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nflib.montecarlo import diagnostics
from nflib.montecarlo.genealogy import family_sums, log_normalizer_variance
from nflib.montecarlo.resampling import resample

__all__ = ["WeightedSamples"]

OPTIONAL_ARRAYS = ("log_prob", "log_target", "ancestors")


@dataclass(frozen=True, eq=False)
class WeightedSamples:
    """N samples of a proposal q with unnormalised log-weights `log p~(x) - log q(x)` in nats (float64), or particles
    of a sampler with the weights that it gave them; either way the mean weight estimates the normaliser.

    A rejected sample (non-finite position, density or energy) stays in place with log-weight `-inf`: it
    counts in N, so the normaliser stays honest, and contributes to nothing else.

    Attributes:
        x: `(N, *event_shape)`.
        log_weights: `(N,)`, float64.
        log_prob: log q(x), `(N,)`, if known.
        log_target: log p~(x), unnormalised, `(N,)`, if known.
        num_rejected: how many samples were rejected.
        clipped: fraction of the largest weights that `truncate` removed; 0 means untouched.
        unclipped: the object that `truncate` was called on.
        ancestors: `(N,)`, int64: samples of one number descend from one draw and are not independent, which standard
            errors account for. None: all are independent.
        log_normalizer_variance: the squared standard error of `log_normalizer`, where the sampler knows it better than
            the weights and ancestors do.

    Raises:
        ValueError: shapes disagree, there are no samples, or a log-weight is NaN or +inf.
    """

    x: Tensor
    log_weights: Tensor
    log_prob: Tensor | None = None
    log_target: Tensor | None = None
    num_rejected: int = 0
    clipped: float = 0.0
    unclipped: WeightedSamples | None = None
    ancestors: Tensor | None = None
    log_normalizer_variance: float | None = None

    def __post_init__(self) -> None:
        count = len(self.x)
        for name in ("log_weights", "log_prob", "log_target", "ancestors"):
            value = getattr(self, name)
            if value is not None and value.shape != (count,):
                raise ValueError(
                    f"WeightedSamples: {name} has shape {tuple(value.shape)}, but there are {count} "
                    f"samples; pass ({count},)."
                )
        if count == 0:
            raise ValueError("WeightedSamples: there are no samples; pass one or more.")
        if not (self.log_weights < torch.inf).all():
            raise ValueError(
                "WeightedSamples: log_weights contain NaN or +inf; build the object with from_log_densities, "
                "which gives such samples weight zero and counts them."
            )
        object.__setattr__(self, "log_weights", self.log_weights.to(torch.float64))

    @classmethod
    def from_log_densities(cls, x: Tensor, log_prob: Tensor, log_target: Tensor) -> WeightedSamples:
        """Weights `exp(log_target - log_prob)`; zero, and counted, where one of the three is not finite."""
        log_weights = log_target.to(torch.float64) - log_prob.to(torch.float64)
        # A difference is finite only if both densities are: inf - inf is NaN.
        finite = torch.isfinite(x).flatten(1).all(dim=1) & torch.isfinite(log_weights)
        log_weights = torch.where(finite, log_weights, -torch.inf)
        return cls(x, log_weights, log_prob, log_target, num_rejected=int((~finite).sum()))

    def __len__(self) -> int:
        return len(self.x)

    @property
    def weights(self) -> Tensor:
        """Normalised weights `(N,)`, float64. Raises ValueError if every weight is zero."""
        return diagnostics.normalized_weights(self.log_weights)

    @property
    def effective_sample_size(self) -> float:
        """Kish's effective sample size, a count between 0 and N."""
        return diagnostics.effective_sample_size(self.log_weights)

    @property
    def effective_sample_size_fraction(self) -> float:
        """Kish's effective sample size divided by N, rejected samples included in N."""
        return self.effective_sample_size / len(self)

    @property
    def log_normalizer(self) -> float:
        """Log of the mean weight: estimates `log Z` of the unnormalised target, in nats."""
        return diagnostics.log_mean_weight(self.log_weights)

    @property
    def log_normalizer_standard_error(self) -> float:
        """Standard error of `log_normalizer` by the delta method, widened where weights are skewed
        (`diagnostics.skewness_widening`); too small where `pareto_k` exceeds 0.7."""
        if self.log_normalizer_variance is not None:
            return math.sqrt(self.log_normalizer_variance)
        if self.ancestors is None:
            return diagnostics.log_mean_weight_standard_error(self.log_weights)
        return math.sqrt(log_normalizer_variance(self.log_weights, self.ancestors))

    @property
    def pareto_k(self) -> float:
        """Tail shape of the weights, see `diagnostics.pareto_k`; above 0.7 the rest is unreliable."""
        return diagnostics.pareto_k(self.log_weights)

    def resample(
        self, num_samples: int, generator: torch.Generator | None = None, scheme: str = "systematic"
    ) -> Tensor:
        """Equally weighted samples `(num_samples, *event_shape)`, with repetitions, grouped by origin."""
        return self.x[resample(self.weights, num_samples, generator, scheme)]

    def expectation(self, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Self-normalised estimate of the mean of `function(x)` under the target, and its standard error.

        `function` maps `(n, *event_shape)` to `(n, *shape)` and sees the samples of positive weight only;
        value and error have that shape, in float64. The error is the delta method's, `sqrt(sum w^2 (f - mean)^2)`,
        with samples of one ancestor added up before squaring.
        """
        used = self.log_weights > -torch.inf
        weights = self.weights[used]
        values = function(self.x[used]).to(torch.float64)
        if values.dim() == 0 or len(values) != len(weights):
            raise ValueError(
                f"expectation: the function returned shape {tuple(values.shape)} for {len(weights)} samples; "
                "return one value a sample along the first dimension."
            )
        weights = weights.reshape(-1, *[1] * (values.dim() - 1))
        mean = (weights * values).sum(0)
        correction = math.sqrt(len(self) / max(len(self) - 1, 1))
        deviations = weights * (values - mean)
        if self.ancestors is not None:
            deviations = family_sums(deviations, self.ancestors[used])
        return mean, correction * deviations.square().sum(0).sqrt()

    def truncate(self, fraction: float) -> WeightedSamples:
        """A new object without the `fraction` of samples whose weights are largest (at least one).

        This biases every estimate towards the proposal. It exists because published figures are made this
        way; `clipped` marks the result and `summary` shows both. Raises ValueError for a fraction outside
        (0, 1), nothing left, or samples that are clipped already.
        """
        if self.clipped:
            raise ValueError("truncate: these samples are clipped already; call truncate on `.unclipped`.")
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"truncate: the fraction is {fraction}; pass one strictly between 0 and 1.")
        removed = math.ceil(fraction * len(self) - 1e-9)
        if removed >= len(self):
            raise ValueError(f"truncate: a fraction of {fraction} leaves none of {len(self)} samples.")
        kept = self.log_weights.argsort(stable=True)[: len(self) - removed].sort().values
        return WeightedSamples(
            x=self.x[kept],
            log_weights=self.log_weights[kept],
            log_prob=None if self.log_prob is None else self.log_prob[kept],
            log_target=None if self.log_target is None else self.log_target[kept],
            num_rejected=self.num_rejected,
            clipped=fraction,
            unclipped=self,
            ancestors=None if self.ancestors is None else self.ancestors[kept],
        )

    def summary(self) -> dict[str, Any]:
        """The figures to report, as plain numbers; a clipped object adds the original's as "unclipped"."""
        figures: dict[str, Any] = {
            "num_samples": len(self),
            "num_rejected": self.num_rejected,
            "effective_sample_size": self.effective_sample_size,
            "effective_sample_size_fraction": self.effective_sample_size_fraction,
            "log_normalizer": self.log_normalizer,
            "log_normalizer_standard_error": self.log_normalizer_standard_error,
            "pareto_k": self.pareto_k,
            "clipped": self.clipped,
        }
        if self.unclipped is not None:
            figures["unclipped"] = self.unclipped.summary()
        return figures

    def save(self, path: str | Path) -> None:
        """Write an .npz file. Clipped samples are saved as the originals and the fraction."""
        source = self if self.unclipped is None else self.unclipped
        arrays = {
            name: tensor.detach().cpu().numpy()
            for name in ("x", *OPTIONAL_ARRAYS, "log_weights")
            if (tensor := getattr(source, name)) is not None
        }
        if source.log_normalizer_variance is not None:
            arrays["log_normalizer_variance"] = np.asarray(source.log_normalizer_variance)
        with Path(path).open("wb") as file:
            np.savez(file, **arrays, num_rejected=source.num_rejected, clipped=self.clipped)

    @classmethod
    def load(cls, path: str | Path) -> WeightedSamples:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError for another kind of file."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"WeightedSamples.load: there is no file {path}; check the path.")
        with Path(path).open("rb") as file:
            if file.read(2) != b"PK":
                raise ValueError(f"WeightedSamples.load: {path} is no .npz file; pass one written by save.")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive)
        missing = {"x", "log_weights", "num_rejected", "clipped"} - arrays.keys()
        if missing:
            raise ValueError(f"WeightedSamples.load: {path} lacks {', '.join(sorted(missing))}; save it again.")
        optional = {name: torch.from_numpy(arrays[name]) for name in OPTIONAL_ARRAYS if name in arrays}
        variance = arrays.get("log_normalizer_variance")
        samples = cls(
            x=torch.from_numpy(arrays["x"]),
            log_weights=torch.from_numpy(arrays["log_weights"]),
            log_prob=optional.get("log_prob"),
            log_target=optional.get("log_target"),
            num_rejected=int(arrays["num_rejected"]),
            ancestors=optional.get("ancestors"),
            log_normalizer_variance=None if variance is None else float(variance),
        )
        clipped = float(arrays["clipped"])
        return samples.truncate(clipped) if clipped else samples
