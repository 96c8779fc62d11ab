"""The decoder that plans itself: windows are chosen by short measurements on the device at hand."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nflib.contexts import as_context, map_context, num_rows
from nflib.decoding.fixed_point import GaussSeidelJacobi, Jacobi, Sequential, State
from nflib.decoding.initial_guesses import AffineGuess
from nflib.decoding.plans import DecodingPlan, Measured, Setting, fingerprint
from nflib.interfaces import CausalMap, Inversion

# Of more numbers than this, an affine initial guess costs more memory and data than it saves time.
LARGEST_AFFINE_GUESS = 512
# Every candidate is tried once, unless it takes FAR_OFF times the best so far; those CLOSE to the best, again, and
# token by token always: what it took is the plan's yardstick.
ROUNDS, FAR_OFF, CLOSE = 3, 2.0, 1.3
# A window is chosen for what it saves at least, against token by token.
WORTH_IT = 0.85


class Auto:
    """A decoder that uses for each map the window that is fastest on this device, as measured once per batch size.

    Candidates are one token, all tokens (also with early sweeps in bfloat16), and the powers of two between. What is
    not in the plan yet is measured when first needed, which takes several inversions, and added to it. One object may
    serve several flows and threads.

    Args:
        plan: measurements to start from, as `nflib.decoding.plan` makes or `DecodingPlan.load` reads them (default:
            none).
        tolerance: as for `GaussSeidelJacobi`, with `ahead`.

    >>> from nflib import decoding, flows
    >>> flow = flows.TARFlow(event_shape=(2,), channels=32, num_blocks=1, layers_per_block=1, head_dim=16)
    >>> decoder = decoding.Auto()
    >>> x = flow.sample(4, decoding=decoder)  # measures, and keeps what it found in decoder.plan
    >>> len(decoder.plan.measured)
    1
    """

    def __init__(self, plan: DecodingPlan | None = None, tolerance: float = 2e-4):
        self.plan = DecodingPlan() if plan is None else plan
        self.tolerance = tolerance
        self._measuring = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Auto:
        return self  # a map that is copied goes on with the same plan

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.plan, self.tolerance)  # locks are not pickled

    @torch.no_grad()
    def __call__(self, map: CausalMap, noise: Tensor, encoded_context: Any, prefix: Tensor | None = None) -> Inversion:
        setting = Setting.of(map, noise, prefix)
        if setting not in self.plan.measured:
            with self._measuring:
                if setting not in self.plan.measured:
                    self.plan.measured[setting] = self._measure(setting, map, noise, encoded_context, prefix)
        best = self.plan.measured[setting]
        return self.decoder(setting.fingerprint, best.window, best.warmup)(map, noise, encoded_context, prefix)

    def decoder(self, fingerprint: str, window: int, warmup: bool) -> GaussSeidelJacobi:
        """The decoder for one map and window.

        Args:
            fingerprint: identifies the map, for its initial guess in the plan.
            window: tokens of a sweep; 1 decodes sequentially.
            warmup: whether early sweeps are in bfloat16.
        """
        if window == 1:
            return Sequential()
        guess = self.plan.initial_guesses.get(fingerprint, "latent")
        return GaussSeidelJacobi(window, self.tolerance, None, guess, torch.bfloat16 if warmup else None, ahead=True)

    def _measure(self, setting: Setting, *call: Any) -> Measured:
        length = max(setting.num_tokens, 1)
        halves = [1 << power for power in reversed(range((length - 1).bit_length()))]
        # Token by token first: its time is needed, and bounds that of the others.
        choices = dict.fromkeys([(1, False), (length, False), (length, length > 1), *((n, False) for n in halves)])
        times = dict.fromkeys(choices, math.inf)
        remaining = list(choices)
        for _ in range(ROUNDS):
            for choice in remaining:
                decoder = self.decoder(setting.fingerprint, *choice)
                try:
                    seconds = _seconds(decoder, min(times.values()), *call)
                except (RuntimeError, TypeError):
                    if not choice[1]:
                        raise
                    seconds = math.inf  # a map need not compute in the low precision of a warm-up
                times[choice] = min(times[choice], seconds)
            limit = CLOSE * min(times.values())
            remaining = [choice for choice in remaining if times[choice] <= limit or choice == (1, False)]
        best = min(times, key=lambda choice: times[choice])
        # Sweeps differ in number from one noise to the next; token by token always takes the same.
        best = best if times[best] < WORTH_IT * times[1, False] else (1, False)
        return Measured(*best, times[best], times[1, False])


def plan(
    flow: Any,
    batch_sizes: Sequence[int],
    context: Any = None,
    *,
    tolerance: float = 2e-4,
    num_samples: int = 1024,
    seed: int = 0,
) -> DecodingPlan:
    """Measure a flow to make a plan for `Auto`: a window for each map and batch size, and fitted initial guesses.

    Args:
        flow: a `nflib.flows.Flow`.
        batch_sizes: how many samples are decoded at once; each is measured.
        context: contexts to sample with, where the flow takes one; rows are used in turn.
        tolerance: as for `Auto`.
        num_samples: samples to which the initial guess of each map is fitted. Maps of more than 512 numbers get none.
        seed: of the samples.

    Raises:
        ValueError: no batch size, or a batch size or number of samples below 1.
    """
    if not batch_sizes or min(batch_sizes) < 1 or num_samples < 1:
        raise ValueError(f"batch_sizes {list(batch_sizes)} and num_samples {num_samples} must be positive numbers.")
    recorder = _Recorder()
    made = DecodingPlan()
    # A first sample tells whether there is anything to fit.
    flow.sample(*_request(1, context), seed=seed, decoding=recorder)
    if recorder.solved:
        recorder.solved.clear()
        flow.sample(*_request(num_samples, context), batch_size=256, seed=seed, decoding=recorder)
    for name, solved in recorder.solved.items():
        noise, u = (torch.cat(parts) for parts in zip(*solved, strict=True))
        made.initial_guesses[name] = AffineGuess.fit(noise, u)
    for batch_size in batch_sizes:
        number, rows = _request(batch_size, context)
        flow.sample(number, rows, batch_size=batch_size, seed=seed + 1, decoding=Auto(made, tolerance))
    return made


class _Recorder:
    """Keeps what small maps were given and what they gave, by fingerprint; large ones are only decoded."""

    def __init__(self) -> None:
        self.solved: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, map: CausalMap, noise: Tensor, encoded_context: Any, prefix: Tensor | None = None) -> Inversion:
        inversion = Jacobi()(map, noise, encoded_context, prefix)
        if noise[0].numel() <= LARGEST_AFFINE_GUESS:
            self.solved.setdefault(fingerprint(map), []).append((noise, inversion.tokens))
        return inversion


def _request(number: int, context: Any) -> tuple[int, Any]:
    """How `Flow.sample` is asked for `number` samples, with rows of the context in turn."""
    context = as_context(context)
    if context is None:
        return number, None
    rows = torch.arange(number) % num_rows(context)
    return 1, map_context(lambda part: part[rows.to(part.device)], context)


def _fewest_sweeps(state: State) -> int:
    """How many sweeps over windows of this size must follow: all but one token of each are computed twice or more."""
    window = state.windows[0]
    return 0 if window == 1 else -(-2 * state.num_tokens // (window + 1)) - 1


def _seconds(
    decoder: GaussSeidelJacobi,
    best: float,
    map: CausalMap,
    noise: Tensor,
    encoded_context: Any,
    prefix: Tensor | None,
) -> float:
    """Wall time of one inversion; infinite as soon as it cannot come near the best time so far."""
    start = time.perf_counter()
    state = decoder.begin(map, noise, encoded_context, prefix)
    while not state.is_done:
        before = time.perf_counter()
        if before - start > FAR_OFF * best:
            return math.inf
        decoder.sweep(state)
        if len(state.windows) == 1 and (time.perf_counter() - before) * _fewest_sweeps(state) > best:
            return math.inf
    if noise.is_cuda:
        torch.cuda.synchronize(noise.device)
    return time.perf_counter() - start
