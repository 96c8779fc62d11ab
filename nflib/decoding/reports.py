"""What decoding cost and how exact it was, collected while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class BlockReport:
    """One map, inverted once. windows: how many tokens each sweep computed, for every sample of the batch.

    residual: the largest ``|shift + scale z - u|`` left in any number of u; 0 where u solves the equations to rounding.
    drafts: how many sweeps over all tokens were made in a lower precision before these.
    """

    batch_size: int
    num_tokens: int
    windows: tuple[int, ...]
    residual: float
    drafts: int = 0

    @property
    def sweeps(self) -> int:
        return len(self.windows)

    @property
    def tokens_computed(self) -> int:
        return sum(self.windows)


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
    def residual(self) -> float:
        return max((block.residual for block in self.blocks), default=0.0)

    def __str__(self) -> str:
        lines = ["block  batch  tokens  drafts  sweeps  largest window  tokens computed  residual"]
        for index, block in enumerate(self.blocks):
            lines.append(
                f"{index:5d}  {block.batch_size:5d}  {block.num_tokens:6d}  {block.drafts:6d}  {block.sweeps:6d}  "
                f"{max(block.windows, default=0):14d}  {block.tokens_computed:15d}  {block.residual:8.1e}"
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


def record(block: BlockReport) -> None:
    """Add a block to every open report."""
    for collected in _active.get():
        collected.blocks.append(block)


def record_round_trip(error: float) -> None:
    """Take note of a round-trip error in every open report."""
    for collected in _active.get():
        known = collected.round_trip_error
        # Not max(): a NaN must not vanish behind a number.
        collected.round_trip_error = error if known is None or not error <= known else known
