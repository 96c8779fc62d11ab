"""The windowed fixed-point solver: sequential, Jacobi and Gauss-Seidel-Jacobi decoding are three of its windows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nflib.decoding.initial_guesses import InitialGuess, as_initial_guess
from nflib.decoding.warmup import contained, warmed_up
from nflib.dtypes import widened
from nflib.interfaces import BlockReport, CausalMap, Inversion, largest

# Looking ahead trusts the rate of changes only this near to the tolerance: in strongly coupled maps it may rise again.
FAR_AHEAD = 10.0


@dataclass
class State:
    """An inversion under way: of the tokens u, those before `start` are final, and their keys are in the cache.

    alive: which samples have not overflowed, ``(B, 1, 1)``; None while all are. logabsdet: of the numbers of the final
    tokens. committed: how many tokens the last sweep made final. guessed: how many tokens have entered the window.
    warmup_sweeps: how many sweeps were made in a lower precision. changes: by how much the last sweep changed each
    token, if its window held all that were left.
    """

    map: CausalMap
    noise: Tensor
    encoded_context: Any
    cache: Any
    u: Tensor
    logabsdet: Tensor
    alive: Tensor | None
    start: int = 0
    committed: int = 1
    guessed: int = 0
    warmup_sweeps: int = 0
    changes: list[float] = field(default_factory=list)
    residual: float = 0.0
    windows: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return self.u.shape[1]

    @property
    def is_done(self) -> bool:
        return self.start >= self.num_tokens


class GaussSeidelJacobi:
    """Gauss-Seidel-Jacobi decoding: solves ``u_t = f(z_t; u_<t)``, affine or not, by sweeps over a sliding window.

    A sweep computes the window's parameters in parallel, given the cached keys and values of the committed tokens
    before it. It commits the leading tokens that changed by at most `tolerance` in all samples, and the one after
    them, whose parameters are then those of committed tokens; the window slides on. So T sweeps always suffice, and
    tolerance 0 gives sequential decoding's result to rounding (Song et al. 2021; GS-Jacobi, arXiv 2505.12849).

    The logabsdet of the `Inversion` that it returns is exact for these tokens at any tolerance, as a committed token
    keeps the value that its successors read, unless it looked `ahead`. Guesses that overflow start again from the
    latent. A sample whose own solution overflows becomes NaN, and does not hold up the others. No gradient flows
    through the result. `begin`, `sweep` and `finish` take single steps.

    Args:
        block_size: tokens of the window; None for all that are left (see `Jacobi`), 1 for one by one (`Sequential`).
        tolerance: absolute, in the units of u.
        max_sweeps: at most so many in a map, the last one over all tokens left (default: no limit).
        initial_guess: "latent" (z itself), "zeros", a tensor that broadcasts to z, a `PreviousFrame` or an
            `AffineGuess`.
        warmup: a dtype such as torch.bfloat16 for the first sweeps, as long as they help, where the window holds all
            tokens; what they find is only a better guess (default: none).
        ahead: with all remaining tokens in the window, do not wait for a sweep that changes nothing: stop with what the
            last one found once the next, by the rate at which changes shrink, would stay within the tolerance.

    Raises:
        ValueError: settings out of range, or an initial guess or prefix of another shape.

    >>> from nflib import decoding, flows
    >>> flow = flows.TARFlow(event_shape=(12,), channels=32, num_blocks=2, head_dim=16)
    >>> x = flow.sample(5, seed=0, decoding=decoding.GaussSeidelJacobi(block_size=4))
    >>> torch.allclose(x, flow.sample(5, seed=0), atol=1e-4)
    True
    """

    def __init__(
        self,
        block_size: int | None,
        tolerance: float = 1e-5,
        max_sweeps: int | None = None,
        initial_guess: InitialGuess = "latent",
        warmup: torch.dtype | None = None,
        ahead: bool = False,
    ):
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size must be a positive number of tokens, or None for all, got {block_size!r}.")
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance must be zero or a positive number, got {tolerance!r}.")
        if max_sweeps is not None and max_sweeps < 1:
            raise ValueError(f"max_sweeps must be a positive number, or None for no limit, got {max_sweeps!r}.")
        self.block_size = block_size
        self.tolerance = tolerance
        self.max_sweeps = max_sweeps
        self.initial_guess = as_initial_guess(initial_guess)
        self.warmup = warmup
        self.ahead = ahead

    def __call__(self, map: CausalMap, noise: Tensor, encoded_context: Any, prefix: Tensor | None = None) -> Inversion:
        state = self.begin(map, noise, encoded_context, prefix)
        while not state.is_done:
            self.sweep(state)
        inversion = self.finish(state)
        # Clones, made outside, are ordinary tensors, which the caller may differentiate through.
        return inversion._replace(tokens=inversion.tokens.clone(), logabsdet=inversion.logabsdet.clone())

    @torch.inference_mode()
    def begin(self, map: CausalMap, noise: Tensor, encoded_context: Any, prefix: Tensor | None = None) -> State:
        """Start an inversion, without a sweep yet; arguments as for a call, see `Decoder`."""
        batch_size, num_tokens, _ = noise.shape
        if prefix is not None:
            _check_prefix(prefix, noise)
        noise = widened(noise)
        state = State(
            map,
            noise,
            encoded_context,
            map.new_cache(batch_size, num_tokens, encoded_context),
            self.initial_guess.guess(noise),
            logabsdet=torch.zeros_like(noise),
            alive=_finite_samples(noise if prefix is None else torch.cat([prefix, noise[:, prefix.shape[1] :]], dim=1)),
        )
        if prefix is not None and prefix.shape[1] > 0:
            self._take(state, prefix)
        elif self.warmup is not None and (self.block_size or num_tokens) >= num_tokens > 1:
            state.u, state.warmup_sweeps = warmed_up(map, noise, state.u, encoded_context, self.warmup)
            state.guessed = num_tokens
        return state

    def _take(self, state: State, prefix: Tensor) -> None:
        length = prefix.shape[1]
        state.u[:, :length] = prefix
        conditionals = state.map.conditionals(state.u, state.encoded_context, state.cache, stop=length)
        state.logabsdet[:, :length] = -state.map.to_noise(state.u[:, :length], conditionals)[1]
        state.start = state.guessed = length

    @torch.inference_mode()
    def sweep(self, state: State) -> None:
        """One sweep over the window: commits at least one token, unless its own solution overflows."""
        u, start = state.u, state.start
        num_tokens = state.num_tokens
        out_of_sweeps = self.max_sweeps is not None and len(state.windows) + 1 >= self.max_sweeps
        alone = state.committed == 0  # The last sweep could not tell whether this token overflows by itself.
        stop = num_tokens if out_of_sweeps else min(start + (self.block_size or num_tokens), num_tokens)
        stop = start + 1 if alone else stop
        self.initial_guess.extend(u, state.guessed, stop)
        state.guessed = max(state.guessed, stop)
        state.windows.append(stop - start)
        conditionals = state.map.conditionals(u, state.encoded_context, state.cache, start, stop)
        latent = state.noise[:, start:stop]
        new, logabsdet = state.map.from_noise(latent, conditionals)
        if stop - start == 1:
            u[:, start:stop] = new
            committed = 1
            if alone:
                finite = new.isfinite().all(-1, keepdim=True)
                state.alive = finite if state.alive is None else state.alive & finite
        else:
            difference = (new - u[:, start:stop]).abs()
            if state.alive is not None:
                difference = torch.where(state.alive, difference, 0.0)
            changes = difference.amax((0, 2)).tolist()
            # Both sweeps must have been over all these tokens.
            expected = _next_change(changes, state.changes[-len(changes) :]) if stop == num_tokens else math.inf
            state.changes = changes if stop == num_tokens else []
            if self.ahead and expected <= self.tolerance and max(changes) <= FAR_AHEAD * self.tolerance:
                u[:, start:] = new
                state.logabsdet[:, start:] = logabsdet
                state.residual = max(state.residual, expected)
                state.start = num_tokens
                return
            settled = len(changes) - 1 if out_of_sweeps else _count_leading(changes[:-1], self.tolerance)
            state.residual = largest([state.residual, *changes[:settled]])
            committed = settled + math.isfinite(changes[settled])
            guess = contained(new, latent, state.cache.dtype, changes)
            u[:, start + settled : stop] = guess[:, settled:]
            if guess is not new:
                u[:, start + settled : start + committed] = new[:, settled:committed]
        state.logabsdet[:, start : start + committed] = logabsdet[:, :committed]
        state.start += committed
        state.committed = committed

    @torch.inference_mode()
    def finish(self, state: State) -> Inversion:
        """The solution, once the inversion is done."""
        windows = tuple(state.windows)
        report = BlockReport(len(state.u), state.num_tokens, windows, state.residual, state.warmup_sweeps)
        u, logabsdet = state.u, state.logabsdet.flatten(1).sum(-1)
        if state.alive is not None and max(windows, default=1) > 1:
            u = u.masked_fill(~state.alive, math.nan)
            logabsdet = logabsdet.masked_fill(~state.alive.flatten(), math.nan)
        return Inversion(u, logabsdet, state.residual, (report,))


class Jacobi(GaussSeidelJacobi):
    """Jacobi iteration: all tokens not yet committed are updated at once, in few sweeps where they depend weakly.

    `GaussSeidelJacobi` with a window over all tokens.

    Args:
        tolerance: absolute, in the units of u; 0 gives sequential decoding's result to rounding.
        max_sweeps: at most so many in a map (default: no limit).
        initial_guess: as for `GaussSeidelJacobi`.
        warmup: as for `GaussSeidelJacobi`.

    >>> from nflib import decoding, flows
    >>> flow = flows.TARFlow(event_shape=(6,), channels=32, num_blocks=2, head_dim=16)
    >>> x, log_prob = flow.sample_and_log_prob(5, seed=0, decoding=decoding.Jacobi(tolerance=1e-3))
    """

    def __init__(
        self,
        tolerance: float = 1e-5,
        max_sweeps: int | None = None,
        initial_guess: InitialGuess = "latent",
        warmup: torch.dtype | None = None,
    ):
        super().__init__(None, tolerance, max_sweeps, initial_guess, warmup)


class Sequential(GaussSeidelJacobi):
    """Sequential decoding, token by token: each of T tokens is computed once, exactly. The default decoder.

    `GaussSeidelJacobi` with a window of one token.
    """

    def __init__(self) -> None:
        super().__init__(1, 0.0)


def _check_prefix(prefix: Tensor, noise: Tensor) -> None:
    expected = (len(noise), noise.shape[-1])
    if prefix.dim() != 3 or (len(prefix), prefix.shape[-1]) != expected or prefix.shape[1] > noise.shape[1]:
        raise ValueError(f"a prefix of shape {tuple(prefix.shape)} does not fit tokens {tuple(noise.shape)}.")


def _finite_samples(tokens: Tensor) -> Tensor | None:
    """Which samples are finite, ``(B, 1, 1)``; None where all are."""
    finite = tokens.isfinite().all(-1, keepdim=True).all(1, keepdim=True)
    return None if finite.all() else finite


def _next_change(changes: list[float], last: list[float]) -> float:
    """By how much all further sweeps together would change a token, were changes to shrink on as in the last one."""
    if not any(changes):
        return 0.0
    if len(last) < len(changes) or not all(map(math.isfinite, (*changes, *last))) or max(changes) >= max(last):
        return math.inf
    rate = max(changes) / max(last)
    return max(changes) * rate / (1 - rate)


def _count_leading(changes: list[float], tolerance: float) -> int:
    """How many of the first changes are within the tolerance (a NaN is not)."""
    return next((index for index, change in enumerate(changes) if not change <= tolerance), len(changes))
