"""Work of many small tensor operations, spread over threads as a whole."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch


def for_each(work: Callable[[slice], None], parts: Iterable[slice], threads: int) -> None:
    """Calls `work` with each part, in up to `threads` threads, without gradients."""

    def without_gradients(part: slice) -> None:
        # Gradient mode belongs to a thread, so it is set where the work is done.
        with torch.no_grad():
            work(part)

    parts = list(parts)
    if min(threads, len(parts)) <= 1:
        for part in parts:
            without_gradients(part)
        return
    with ThreadPoolExecutor(min(threads, len(parts))) as pool:
        for result in [pool.submit(without_gradients, part) for part in parts]:
            result.result()


def keep_freed_memory() -> None:
    """Lets malloc reuse the memory of temporaries instead of handing it back to the kernel after each.

    glibc hands back freed memory above a threshold that starts at 128 KiB and rises to the largest block freed so far.
    Faulting such pages in anew costs as much as the arithmetic; freeing one large block, never touched, raises it.
    """
    torch.empty(24 << 20, dtype=torch.uint8, device="cpu")
