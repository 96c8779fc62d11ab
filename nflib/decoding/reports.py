"""What decoding cost and how exact it was, collected while it runs. Reports listen; no number depends on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from nflib.interfaces import BlockReport, largest_residual


@dataclass
class DecodingReport:
    """What decoding cost within a `report` block, and how exact it was. `print` shows it as a table.

    Attributes:
        blocks: a report for each map inverted, in the order of inversion.
        round_trip_error: the largest ``|transform(x) - z|`` in any number of the noise z that a flow decoded to a
            finite x; None until a flow has sampled. (Measuring it takes a forward pass after each batch.)
    """

    blocks: list[BlockReport] = field(default_factory=list)
    round_trip_error: float | None = None

    @property
    def sweeps(self) -> int:
        """Sweeps of all maps together, those in a lower precision not counted."""
        return sum(block.sweeps for block in self.blocks)

    @property
    def tokens_computed(self) -> int:
        """Tokens that all sweeps of all maps computed, for every sample of the batch."""
        return sum(block.tokens_computed for block in self.blocks)

    @property
    def tokens_needed(self) -> int:
        """Tokens that sequential decoding would compute: every token once."""
        return sum(block.num_tokens for block in self.blocks)

    @property
    def residual(self) -> float | None:
        """The largest residual of any map; None where a decoder did not say."""
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
    """Report what decoding costs in this thread while the block lasts.

    Yields:
        A `DecodingReport`, filled while the block runs.

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
