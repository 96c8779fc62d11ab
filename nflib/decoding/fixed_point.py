"""The windowed fixed-point solver: sequential, Jacobi and Gauss-Seidel-Jacobi decoding are three of its windows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nflib.decoding.reports import BlockReport, record

if TYPE_CHECKING:
    from nflib.transforms.autoregressive import AutoregressiveTransform


class GaussSeidelJacobi:
    """Solves ``u_t = shift_t(u_<t) + scale_t(u_<t) z_t`` by sweeps over a sliding window of `block_size` tokens.

    A sweep computes the window's parameters in parallel, given the cached keys and values of the committed tokens
    before it. It commits the leading tokens that changed by at most `tolerance` in all samples, and the one after
    them, whose parameters are then those of committed tokens; the window slides on. So T sweeps always suffice, and
    tolerance 0 gives sequential decoding's result to rounding (Song et al. 2021; GS-Jacobi, arXiv 2505.12849).

    tolerance: absolute, in the units of u. max_sweeps: at most so many in a map, the last one over all tokens left.
    start: the first guess, "latent" (z itself), "zeros", or a tensor that broadcasts to z. Guesses that overflow
    start again from the latent. A sample whose own solution overflows becomes NaN, and does not hold up the others.

    Called with the transform, z ``(B, T, C)`` and the context; returns u and ``sum log scale`` ``(B,)``, which is
    exact for this u at any tolerance: a committed token keeps the very value that its successors read. No gradient
    flows through the result. Raises ValueError for settings out of range, or a start of another shape.
    """

    def __init__(
        self,
        block_size: int | None,
        tolerance: float = 1e-5,
        max_sweeps: int | None = None,
        start: str | Tensor = "latent",
    ):
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size must be a positive number of tokens, or None for all, got {block_size!r}.")
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance must be zero or a positive number, got {tolerance!r}.")
        if max_sweeps is not None and max_sweeps < 1:
            raise ValueError(f"max_sweeps must be a positive number, or None for no limit, got {max_sweeps!r}.")
        if not isinstance(start, Tensor) and start not in ("latent", "zeros"):
            raise ValueError(f"start must be 'latent', 'zeros' or a tensor, got {start!r}.")
        self.block_size = block_size
        self.tolerance = tolerance
        self.max_sweeps = max_sweeps
        self.start = start

    @torch.no_grad()
    def __call__(
        self, transform: AutoregressiveTransform, noise: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        network = transform.network
        batch_size, num_tokens, _ = noise.shape
        window = min(self.block_size or num_tokens, num_tokens)
        dtype = _compute_dtype(network.proj_in.weight)
        cache = network.new_cache(batch_size, num_tokens, dtype=dtype, device=noise.device)
        embedded = network.embed(context)
        noise = noise.to(torch.promote_types(noise.dtype, torch.float32))
        u = self._first_guess(noise)
        # A guess is kept far from overflow: what one token overflows to, masked attention still hands to all others.
        limit = torch.finfo(dtype).max ** 0.25
        logabsdet = noise.new_zeros(batch_size)
        alive = noise.isfinite().all(-1, keepdim=True).all(1, keepdim=True)
        start, committed, residual, windows = 0, 1, 0.0, list[int]()
        while start < num_tokens:
            out_of_sweeps = self.max_sweeps is not None and len(windows) + 1 >= self.max_sweeps
            alone = committed == 0  # The last sweep could not tell whether this token overflows by itself.
            stop = num_tokens if out_of_sweeps else min(start + window, num_tokens)
            stop = start + 1 if alone else stop
            windows.append(stop - start)
            parameters = network.extend(u[:, max(start - 1, 0) : stop - 1], start, cache, embedded)
            shift, log_scale = transform.shift_and_log_scale(parameters)
            latent = noise[:, start:stop]
            new = shift + latent * torch.exp(log_scale)
            if stop - start == 1:
                u[:, start:stop] = new
                committed = 1
                if alone:
                    alive = alive & new.isfinite().all(-1, keepdim=True)
            else:
                changes = torch.where(alive, (new - u[:, start:stop]).abs(), 0.0).amax((0, 2)).tolist()
                settled = len(changes) - 1 if out_of_sweeps else _count_leading(changes[:-1], self.tolerance)
                residual = max([residual, *changes[:settled]])
                committed = settled + math.isfinite(changes[settled])
                guess = torch.where(new.abs() <= limit, new, latent)
                guess[:, :committed] = new[:, :committed]
                u[:, start + settled : stop] = guess[:, settled:]
            logabsdet = logabsdet + log_scale[:, :committed].flatten(1).sum(-1)
            start += committed
        record(BlockReport(batch_size, num_tokens, tuple(windows), residual))
        if window > 1:
            u = u.masked_fill(~alive, math.nan)
            logabsdet = logabsdet.masked_fill(~alive.flatten(), math.nan)
        return u, logabsdet

    def _first_guess(self, noise: Tensor) -> Tensor:
        if isinstance(self.start, str):
            return noise.clone() if self.start == "latent" else torch.zeros_like(noise)
        start = self.start.to(noise)
        try:
            start = start.expand_as(noise)
        except RuntimeError as error:
            raise ValueError(
                f"start of shape {tuple(start.shape)} does not broadcast to tokens {tuple(noise.shape)}."
            ) from error
        return torch.where(start.isfinite(), start, noise)


class Jacobi(GaussSeidelJacobi):
    """`GaussSeidelJacobi` with a window over all tokens not yet committed (Jacobi iteration)."""

    def __init__(self, tolerance: float = 1e-5, max_sweeps: int | None = None, start: str | Tensor = "latent"):
        super().__init__(None, tolerance, max_sweeps, start)


class Sequential(GaussSeidelJacobi):
    """`GaussSeidelJacobi` with a window of one token: each is computed once, in T steps, exactly."""

    def __init__(self) -> None:
        super().__init__(1, 0.0)


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """What the network's keys and values come out in."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _count_leading(changes: list[float], tolerance: float) -> int:
    """How many of the first changes are within the tolerance (a NaN is not)."""
    return next((index for index, change in enumerate(changes) if not change <= tolerance), len(changes))
