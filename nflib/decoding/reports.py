"""What decoding cost and how exact it was, collected while it runs. Reports listen; no number depends on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from nflib.interfaces import BlockReport, largest_residual


@dataclass
class DecodingReport:
    """The maps inverted within a `report` block, in the order of their inversion: one entry for each call.

    round_trip_error: the largest ``|transform(x) - z|`` in any number of the noise z that a flow decoded to a finite
    x; None until a flow has sampled. (Measuring it takes a forward pass after each batch.)
    """

    blocks: list[BlockReport] = field(default_factory=list)
    round_trip_error: float | None = None

    @property
    def sweeps(self) -> int:
        return sum(block.sweeps for block in self.blocks)

    @property
    def tokens_computed(self) -> int:
        return sum(block.tokens_computed for block in self.blocks)

    @property
    def tokens_needed(self) -> int:
        """What sequential decoding computes: every token once."""
        return sum(block.num_tokens for block in self.blocks)

    @property
    def residual(self) -> float | None:
        """The largest residual of any block; None where a decoder did not say."""
        return largest_residual(block.residual for block in self.blocks)

    def __repr__(self) -> str:
        lines = ["block  batch  tokens  warm-up  sweeps  largest window  tokens computed  residual"]
        for index, block in enumerate(self.blocks):
            residual = " unknown" if block.residual is None else f"{block.residual:8.1e}"
            lines.append(
                f"{index:5d}  {block.batch_size:5d}  {block.num_tokens:6d}  {block.warmup_sweeps:7d}  "
                f"{block.sweeps:6d}  {max(block.windows, default=0):14d}  {block.tokens_computed:15d}  {residual}"
            )
        error = "not measured" if self.round_trip_error is None else f"{self.round_trip_error:.1e}"
        lines.append(f"{self.tokens_computed} tokens computed, {self.tokens_needed} needed; round-trip error {error}")
        return "\n".join(lines)


_active: ContextVar[tuple[DecodingReport, ...]] = ContextVar("nflib_decoding_reports", default=())


@contextmanager
def report() -> Iterator[DecodingReport]:
    """Collects what is decoded within the block, in this thread.

    >>> from nflib import decoding, flows
    >>> flow = flows.TARFlow(event_shape=(6,), channels=32, num_blocks=2, head_dim=16)
    >>> with decoding.report() as report:
    ...     x = flow.sample(5, decoding=decoding.Sequential())
    >>> report.tokens_computed, report.tokens_needed
    (12, 12)
    """
    collected = DecodingReport()
    token = _active.set((*_active.get(), collected))
    try:
        yield collected
    finally:
        _active.reset(token)


def is_reporting() -> bool:
    """Whether any `report` block is open in this thread."""
    return bool(_active.get())


def record(blocks: Iterable[BlockReport]) -> None:
    """Add blocks to every open report."""
    for collected in _active.get():
        collected.blocks.extend(blocks)


def record_round_trip(error: float) -> None:
    """Take note of a round-trip error in every open report."""
    for collected in _active.get():
        known = collected.round_trip_error
        # Not max(): a NaN must not vanish behind a number.
        collected.round_trip_error = error if known is None or not error <= known else known
