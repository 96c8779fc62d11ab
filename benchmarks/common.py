"""What every benchmark shares: arguments, a line about the machine, timing, and tables in Markdown."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows defaults and has the options that every benchmark takes: --threads and --seed."""
    parser = argparse.ArgumentParser(
        description=(description or "").strip(), formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads that torch may use")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    return parser


def prepare(arguments: argparse.Namespace) -> None:
    """Set the number of threads and torch's global seed, and print which machine this is."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    print(f"{machine()}\n", flush=True)


def machine() -> str:
    """The processor, its cores, torch's threads, the versions, and the load that others put on the machine."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"Machine: {processor()}, {os.cpu_count()} cores{load}; torch {torch.__version__} with "
        f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}; "
        f"Python {platform.python_version()}, {platform.system()}"
    )


def processor() -> str:
    """The processor's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown with aligned columns: text to the left, everything that looks like a number to the right."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [all(_is_number(row[i]) for row in cells[1:]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 1) + (":" if n else "-") for w, n in zip(widths, numeric, strict=True))
    return "\n".join([line(cells[0]), f"|{rule}|", *(line(row) for row in cells[1:])])


def _is_number(text: str) -> bool:
    return text.lstrip("+-−").lstrip()[:1].isdigit() or text in ("", "–")


def median_seconds(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall time of each function, called in turns after a warm-up, so that a drifting clock hits them alike."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}


def count_parameters(module: nn.Module) -> int:
    """Numbers that training may change."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
