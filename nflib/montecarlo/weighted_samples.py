"""Samples with importance weights, with the estimates, errors and warnings that come with them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

import nflib.montecarlo.diagnostics as diagnostics
from nflib.dtypes import as_tensor
from nflib.errors import at_least
from nflib.events import finite_rows, per_row
from nflib.io.arrays import read_arrays, within, write_arrays
from nflib.io.documents import finite_or_none
from nflib.montecarlo.densities import Target, as_target, log_prob_where
from nflib.montecarlo.genealogy import NONE, Resamplings, family_sums, log_normalizer_variance, mean_error
from nflib.montecarlo.resampling import resample
from nflib.random import given_generator

__all__ = ["WeightedSamples"]

ARRAYS = {"x": "fiu", "log_weights": "f", "num_rejected": "iu", "clipped": "fiu"}
OPTIONAL_ARRAYS = {"log_prob": "f", "log_target": "f", "ancestors": "iu"}
# Above this shape of the weights' tail, or below this many independent draws, no error is told (Vehtari et al. 2024).
MAX_PARETO_K = 0.7
MIN_EFFECTIVE = 10
# Of the effective sample size: fewer independent draws than that are worth a warning.
FEW_ANCESTORS = 0.1


@dataclass(frozen=True, eq=False)
class WeightedSamples:
    """Samples with importance weights, and the estimates that they give, with errors.

    They are N samples of a proposal q with unnormalised log-weights `log p~(x) - log q(x)` in nats, or particles of a
    sampler with the weights that it gave them; either way the mean weight estimates the normaliser of the target p~.

    A rejected sample (non-finite position, density or energy) stays in place with log-weight `-inf`: it
    counts in N, so the normaliser stays honest, and contributes to nothing else.

    Attributes:
        x: positions, `(N, *event_shape)`.
        log_weights: unnormalised, `(N,)`, float64.
        log_prob: log q(x), `(N,)`, if known.
        log_target: log p~(x), unnormalised, `(N,)`, if known.
        num_rejected: how many samples were rejected.
        clipped: fraction of the largest weights that `truncate` removed; 0 means untouched.
        unclipped: the object that `truncate` was called on.
        ancestors: `(N,)`, int64: samples of one number descend from one draw and are not independent, which standard
            errors account for. None: all are independent.
        resamplings: what the resamplings that made the ancestors add to the error of the normaliser.

    Printing one shows in a line how many samples there are and what they are worth, and the warning if there is one.

    Raises:
        ValueError: shapes disagree, there are no samples, or a log-weight is NaN or +inf.

    >>> import torch
    >>> samples = WeightedSamples(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 1.0]))
    >>> samples.weights
    tensor([0.2689, 0.7311], dtype=torch.float64)
    >>> round(samples.effective_sample_size, 4)
    1.6481
    """

    x: Tensor
    log_weights: Tensor
    log_prob: Tensor | None = None
    log_target: Tensor | None = None
    num_rejected: int = 0
    clipped: float = 0.0
    unclipped: WeightedSamples | None = None
    ancestors: Tensor | None = None
    resamplings: Resamplings = NONE

    def __post_init__(self) -> None:
        names = ("log_weights", "log_prob", "log_target", "ancestors")
        for name in ("x", *names):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_tensor(value))
        count = len(self.x)
        for name in names:
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
        """Samples with the weights `exp(log_target - log_prob)`; zero, and counted, where a number is not finite.

        Args:
            x: positions, `(N, *event_shape)`.
            log_prob: log q(x) of the proposal, `(N,)`, in nats.
            log_target: log p~(x), unnormalised, `(N,)`, in nats.

        Returns:
            Independent samples, whose `num_rejected` is the number of those of weight zero.

        Raises:
            ValueError: no samples, or numbers of log-densities that are not theirs.
        """
        x, log_prob, log_target = (as_tensor(values) for values in (x, log_prob, log_target))
        log_weights = log_target.to(torch.float64) - log_prob.to(torch.float64)
        # A difference is finite only if both densities are: inf - inf is NaN.
        finite = finite_rows(x) & torch.isfinite(log_weights)
        log_weights = torch.where(finite, log_weights, -torch.inf)
        return cls(x, log_weights, log_prob, log_target, num_rejected=int((~finite).sum()))

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        figures = (
            f"{len(self)} samples, effective sample size {self.effective_sample_size:.0f} "
            f"({self.effective_sample_size_fraction:.3f}), worth {self.effective_num_ancestors:.0f} independent draws; "
            f"log Z {self.log_normalizer:.4g} ± {self.log_normalizer_standard_error:.2g}, Pareto k {self.pareto_k:.2f}"
        )
        return f"{figures}. {self.warning}" if self.warning else f"{figures}."

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
        """Standard error of `log_normalizer`; infinite where `refusal` says why.

        It is the delta method's on families of common ancestry, widened where few weights make it
        (`diagnostics.error_inflation`).
        """
        if self.refusal:
            return math.inf
        return math.sqrt(log_normalizer_variance(self.log_weights, self.ancestors, self.resamplings))

    @property
    def effective_num_ancestors(self) -> float:
        """How many independent draws the samples are worth, a count.

        It is Kish's effective size of the weights of whole families of one ancestor; `effective_sample_size` where all
        are independent.
        """
        if self.ancestors is None or self.effective_sample_size == 0.0:
            return self.effective_sample_size
        return 1.0 / family_sums(self.weights, self.ancestors).square().sum().item()

    @property
    def pareto_k(self) -> float:
        """Tail shape of the weights (`diagnostics.pareto_k`): the largest of these and of those that were resampled."""
        k, past = diagnostics.pareto_k(self.log_weights), self.resamplings.pareto_k
        return past if math.isnan(k) and past > -math.inf else max(k, past)

    @property
    def refusal(self) -> str | None:
        """Why no error bar of any estimate can be given, in a sentence; None where one can."""
        size, k = self.effective_num_ancestors, self.pareto_k
        if size < MIN_EFFECTIVE:
            reason = f"the {len(self)} samples are worth {size:.1f} independent draws"
        elif k > MAX_PARETO_K:
            reason = f"Pareto k of the weights is {k:.3g}, above {MAX_PARETO_K}"
        else:
            return None
        return f"No estimate can be trusted, for {reason}: draw more, or from a proposal nearer to the target."

    @property
    def warning(self) -> str | None:
        """What to know before using an estimate, in a sentence: `refusal`, or how few ancestors are left; else None."""
        size = self.effective_num_ancestors
        if self.refusal is None and size < FEW_ANCESTORS * self.effective_sample_size:
            return (
                f"The {len(self)} samples descend from few draws and are worth {size:.0f} independent ones; more moves "
                "at each temperature, or a proposal nearer to the target, keep more."
            )
        return self.refusal

    def resample(
        self,
        num_samples: int,
        generator: torch.Generator | None = None,
        scheme: str = "systematic",
        *,
        seed: int | None = None,
    ) -> Tensor:
        """Equally weighted samples, drawn from these by their weights, with repetitions.

        Args:
            num_samples: how many.
            generator: of the random numbers; neither this nor a seed means torch's global generator.
            scheme: of `nflib.montecarlo.resample`.
            seed: of a new generator, in place of one.

        Returns:
            Positions `(num_samples, *event_shape)`; copies of one sample stand together.

        Raises:
            ValueError: every weight is zero, num_samples below one, generator and seed together, an unknown scheme.
        """
        return self.x[resample(self.weights, num_samples, given_generator(generator, seed), scheme)]

    def expectation(self, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Self-normalised estimate of the mean of `function(x)` under the target, and its standard error.

        The error is the delta method's, `sqrt(sum w^2 (f - mean)^2)`, with samples of one ancestor added up before
        squaring where that makes it larger, and widened where few samples make it (`diagnostics.error_inflation`).

        Args:
            function: from positions `(n, *event_shape)` to real values `(n, *shape)`; it sees the samples of positive
                weight only. Booleans say where an event is, whose probability is the mean.

        Returns:
            Mean and standard error, each of that shape, in float64; the error is infinite where `refusal` says why, and
            of an event where it, or its complement, is worth fewer than five independent draws.

        Raises:
            ValueError: every weight is zero, complex values, or not one value a sample.

        >>> import torch
        >>> from nflib.montecarlo import BoltzmannDensity, importance_sample
        >>> normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> target = BoltzmannDensity(lambda x: 0.5 * (x - 0.5).square().sum(dim=-1))
        >>> mean, error = importance_sample(normal, target, 4000, seed=0).expectation(lambda x: x)
        >>> (mean - 0.5).abs() < 3 * error
        tensor([True, True])
        """
        used = self.log_weights > -torch.inf
        weights = self.weights[used]
        values = as_tensor(function(self.x[used]))
        is_event = values.dtype == torch.bool
        if values.is_complex():
            raise ValueError("expectation: the function returned complex numbers; return torch.view_as_real of them.")
        values = values.to(torch.float64)
        if values.dim() == 0 or len(values) != len(weights):
            raise ValueError(
                f"expectation: the function returned shape {tuple(values.shape)} for {len(weights)} samples; "
                "return one value a sample along the first dimension."
            )
        mean = (per_row(weights, values) * values).sum(0)
        if self.refusal:
            return mean, torch.full_like(mean, torch.inf)
        ancestors = None if self.ancestors is None else self.ancestors[used]
        return mean, mean_error(weights, values, ancestors, len(self), is_event=is_event)

    @torch.no_grad()
    def reweight(self, target: Target | torch.distributions.Distribution, batch_size: int = 1024) -> Self:
        """The same samples weighted to another target, with errors that account for it.

        Samples that are independent and know their `log_prob` are weighted by `target / proposal` anew. Others keep
        their weights times `target / present target`, which is right where the present target is positive wherever the
        new one is.

        Args:
            target: has `log_prob(x)`, unnormalised; `log_normalizer` is then the logarithm of its normaliser.
            batch_size: how many samples it sees at once.

        Raises:
            ValueError: clipped samples, a target without `log_prob`, neither `log_prob` nor `log_target` known, or
                batch_size no integer of 1 or more.

        >>> import torch
        >>> from nflib.montecarlo import BoltzmannDensity, importance_sample
        >>> normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> samples = importance_sample(normal, BoltzmannDensity(lambda x: 0.5 * x.square().sum(-1)), 4000, seed=0)
        >>> colder = samples.reweight(BoltzmannDensity(lambda x: 0.6 * x.square().sum(-1)))
        >>> abs(colder.log_normalizer - 1.6556) < 3 * colder.log_normalizer_standard_error  # log(pi / 0.6)
        True
        """
        if self.clipped:
            raise ValueError("reweight: these samples are clipped; call reweight on `.unclipped`.")
        anew = self.ancestors is None and self.log_prob is not None
        known = self.log_prob if anew else self.log_target
        if known is None:
            raise ValueError("reweight: these samples know neither log_prob nor log_target, so there is no weight.")
        target, batch_size = as_target(target), at_least(1, "batch_size", batch_size)
        usable = finite_rows(self.x) & torch.isfinite(known)
        if not anew:
            usable &= self.log_weights > -torch.inf
        parts = zip(self.x.split(batch_size), usable.split(batch_size), strict=True)
        log_target = torch.cat([log_prob_where(target.log_prob, *part).to(known.device) for part in parts])
        start = torch.zeros_like(self.log_weights) if anew else self.log_weights
        log_weights = start + (log_target.to(torch.float64) - known.to(torch.float64))
        finite = usable & torch.isfinite(log_weights)
        lost = (~finite if anew else usable & ~finite).sum().item()
        return dataclasses.replace(
            self,
            log_weights=torch.where(finite, log_weights, -torch.inf),
            log_target=log_target,
            num_rejected=int(lost) if anew else self.num_rejected + int(lost),
        )

    def truncate(self, fraction: float) -> WeightedSamples:
        """The samples without the given fraction of those whose weights are largest (at least one).

        This biases every estimate towards the proposal. It exists because published figures are made this
        way; `clipped` marks the result, `unclipped` keeps these samples, and `summary` shows both.

        Raises:
            ValueError: a fraction outside (0, 1), nothing left, or samples that are clipped already.
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
            resamplings=self.resamplings,
        )

    def summary(self) -> dict[str, Any]:
        """The figures to report as plain numbers for JSON; None for a number that is not finite.

        "refusal" and "warning" are sentences, or None. Clipped samples add the figures of the originals as "unclipped".
        """
        figures: dict[str, Any] = {
            "num_samples": len(self),
            "num_rejected": self.num_rejected,
            "clipped": self.clipped,
            "refusal": self.refusal,
            "warning": self.warning,
        }
        names = (
            "effective_sample_size",
            "effective_sample_size_fraction",
            "effective_num_ancestors",
            "log_normalizer",
            "log_normalizer_standard_error",
            "pareto_k",
        )
        figures |= {name: finite_or_none(getattr(self, name)) for name in names}
        if self.unclipped is not None:
            figures["unclipped"] = self.unclipped.summary()
        return figures

    def save(self, path: str | Path) -> None:
        """Write an .npz file, whole or not at all. Clipped samples are saved as the originals and the fraction.

        Numbers in bfloat16, which NumPy does not have, are saved in float32.
        """
        source = self if self.unclipped is None else self.unclipped
        write_arrays(path, source._arrays() | {"clipped": self.clipped})

    def _arrays(self) -> dict[str, Any]:
        """All that is saved of samples that are not clipped."""
        arrays: dict[str, Any] = {
            name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().cpu().numpy()
            for name in ("x", *OPTIONAL_ARRAYS, "log_weights")
            if (tensor := getattr(self, name)) is not None
        }
        resamplings = dataclasses.asdict(self.resamplings)
        arrays |= {f"resamplings.{name}": value for name, value in resamplings.items() if value}
        return arrays | {"num_rejected": self.num_rejected}

    @classmethod
    def _further(cls, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """What a subclass reads of these, as arguments of its own."""
        return {}

    @classmethod
    def load(cls, path: str | Path) -> WeightedSamples:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a damaged file, or one of another kind.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"WeightedSamples.load: there is no file {path}; check the path.")
        arrays = read_arrays(path, ARRAYS, OPTIONAL_ARRAYS)
        optional: dict[str, Any] = {name: torch.from_numpy(arrays[name]) for name in OPTIONAL_ARRAYS if name in arrays}
        try:
            of_resamplings = {name: value.item() for name, value in within("resamplings", arrays).items()}
            samples = cls(
                x=torch.from_numpy(arrays["x"]),
                log_weights=torch.from_numpy(arrays["log_weights"]),
                num_rejected=int(arrays["num_rejected"]),
                resamplings=Resamplings(**of_resamplings),
                **optional,
                **cls._further(arrays),
            )
            if not finite_rows(samples.x[samples.log_weights > -torch.inf]).all():
                raise ValueError("samples that are not finite have a weight")
            clipped = float(arrays["clipped"])
            return samples.truncate(clipped) if clipped else samples
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"WeightedSamples.load: {path} is damaged ({error}); save it again.") from error
