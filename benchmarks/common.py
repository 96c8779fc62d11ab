"""What every benchmark shares: arguments, a line about the machine, timing, and tables in Markdown."""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn

from nflib import Flow, decoding
from nflib.flows import TARFlow
from nflib.io.pretrained import WEIGHTS_NAME
from nflib.networks import CausalTransformer
from nflib.networks.attention import CausalSelfAttention
from nflib.training import TrainingConfig, TrainingResult, fit, loop, maximum_likelihood
from nflib.training.feed import Augmentation

if TYPE_CHECKING:
    from molecular.data.ensembles import Ensemble

AnyFlow = TypeVar("AnyFlow", bound=Flow)

# The examples are no part of the package: benchmarks find them in the checkout.
sys.path.append(str(Path(__file__).parents[1]))
# Root mean square of shifts and log-scales, about that of trained flows.
PARAMETER_SIZE = 0.1


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


def trained(
    flow: nn.Module,
    data: object,
    seconds: float,
    seed: int,
    objective: Callable[..., Any] = maximum_likelihood,
    augment: Augmentation | None = None,
    validation: object = None,
    **settings: Any,
) -> TrainingResult:
    """Train a flow quietly for so many seconds of the processor, with settings of `TrainingConfig`."""
    config = quiet(seed, max_seconds=seconds, **settings)
    with tempfile.TemporaryDirectory() as folder, processor_clock():
        return fit(flow, data, validation, config=config, objective=objective, output=folder, augment=augment)


def quiet(seed: int, **settings: Any) -> TrainingConfig:
    """Training on the CPU, of which nothing is shown, and kept only what there is at the end."""
    fixed: dict[str, Any] = {
        "accelerator": "cpu",
        "progress_bar": False,
        "tensorboard": False,
        "checkpoint_interval": None,
    }
    return TrainingConfig(seed=seed, **(fixed | settings))


def processor_clock() -> AbstractContextManager[object]:
    """`fit` counts seconds of this process's processor, which others' work on the machine leaves alone.

    The clock of the training loop alone is exchanged: everything else keeps its own.
    """
    return mock.patch.object(loop, "time", SimpleNamespace(monotonic=time.process_time))


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


def median_and_range(values: Sequence[float], digits: int = 3) -> str:
    """As "median (least … most)"."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} … {max(values):.{digits}f})"


def _is_number(text: str) -> bool:
    return text.lstrip("+-−").lstrip()[:1].isdigit() or text in ("", "–")


def named_folders(entries: list[str]) -> dict[str, list[Path]]:
    """NAME=FOLDER,FOLDER ..., or FOLDER, which is its own name."""
    parts = [entry.partition("=") for entry in entries]
    return {
        name: [Path(folder) for folder in (folders if equals else name).split(",")] for name, equals, folders in parts
    }


def fingerprints(folders: Sequence[Path]) -> dict[str, str]:
    """Of the weights of flows, by folder: figures of others are not theirs."""
    return {str(folder): hashlib.sha256((folder / WEIGHTS_NAME).read_bytes()).hexdigest()[:16] for folder in folders}


def kept(
    path: Path, settings: dict[str, Any], run: Callable[[], dict[str, Any]], renewed_by: Sequence[str] = ()
) -> dict[str, Any]:
    """What the file holds, or what `run` gives, which is then written.

    Where the file was made with other settings, `run` makes it anew if these are all in `renewed_by`, else this exits.
    """
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        made_with = found["made_with"]
        changed = {key for key in made_with | settings if made_with.get(key) != settings.get(key)}
        if not changed:
            return found
        if not changed <= set(renewed_by):
            raise SystemExit(f"error: {path} was made with {made_with}; choose another output folder.")
    start = time.perf_counter()
    record = run() | {"made_with": settings}
    record["seconds"] = time.perf_counter() - start
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(temporary, path)
    return record


def reference_frames(folder: Path, start_ps: float, most: int) -> Ensemble:
    """At most so many frames of a simulation, evenly spaced, from a time in ps on."""
    from molecular.data.ensembles import load_ensemble

    frames = load_ensemble(folder, start_ps=start_ps)
    return frames.select(torch.linspace(0, len(frames) - 1, min(len(frames), most)).round().long())


def in_fresh_process(*options: str, **environment: str) -> list[float]:
    """The numbers that this script prints in a process of its own, with these options and as many threads."""
    command = [sys.executable, "-W", "ignore", sys.argv[0], "--threads", str(torch.get_num_threads()), *options]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment).stdout
    return [float(number) for number in printed.split()]


def peak_and_seconds(call: Callable[[], object]) -> tuple[float, float]:
    """How much the resident set grows at most during a call, in MiB, and the processor's seconds that it takes.

    The first is nan where the system has no /proc to tell it.
    """
    clear, before = Path("/proc/self/clear_refs"), math.nan
    if clear.exists():
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        clear.write_text("5")  # sets the peak to the present
        before = _mebibytes("VmRSS")
    start = time.process_time()
    call()
    seconds = time.process_time() - start
    return (_mebibytes("VmHWM") - before if clear.exists() else math.nan), seconds


def _mebibytes(field: str) -> float:
    """A field of /proc/self/status, which is in kB: VmRSS, the resident set, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def median_seconds(
    functions: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median time of each function, called in turns after a warm-up, so that a drifting clock hits them alike."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = clock()
            function()
            seconds[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def synchronise(device: torch.device) -> None:
    """Wait for what was started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_a_call(
    function: Callable[[], object], device: torch.device, seconds: float = 2.0, most: int = 20, is_warm: bool = False
) -> float:
    """Median wall time of a call and of all that it starts on the device, after a warm-up unless it is warm.

    Calls go on until `seconds` are spent, or twice that where there are fewer than three, and until there are `most`.
    """
    if not is_warm:
        function()
    synchronise(device)
    times: list[float] = []
    while len(times) < most and (sum(times) < seconds or (len(times) < 3 and sum(times) < 2 * seconds)):
        start = time.perf_counter()
        function()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def operations(network: CausalTransformer, read: int) -> float:
    """Floating-point operations of one pass over `read` tokens: linear maps, and attention under the causal mask."""
    linear = sum(2.0 * part.weight.numel() for part in network.modules() if isinstance(part, nn.Linear))
    attentions = [part for part in network.modules() if isinstance(part, CausalSelfAttention)]
    widths = sum(part.num_heads * part.head_dim for part in attentions)
    return linear * read + 2.0 * widths * read * (read + 1)


def random_tarflow(
    event_shape: tuple[int, ...], patch_size: int, channels: int, num_blocks: int, layers_per_block: int
) -> TARFlow:
    """A `TARFlow` on torch's default device, `with_random_weights`."""
    return with_random_weights(TARFlow(event_shape, patch_size, channels, num_blocks, layers_per_block))


@torch.no_grad()
def with_random_weights(flow: AnyFlow, context: Tensor | None = None) -> AnyFlow:
    """The flow with random weights, with which shifts and log-scales of each map are of `PARAMETER_SIZE`."""
    for module in flow.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)

    def scale(map: Any, noise: Tensor, encoded_context: Any, prefix: Tensor | None = None) -> decoding.Inversion:
        size = torch.cat(map.conditionals(noise, encoded_context)).square().mean().sqrt()
        map.network.proj_out.weight.mul_(PARAMETER_SIZE / size)
        return decoding.Jacobi(1e-3)(map, noise, encoded_context)

    flow.eval().sample(2, context, seed=0, decoding=scale)
    return flow


def load_reference(checkout: Path) -> ModuleType:
    """The module transformer_flow of a checkout of apple/ml-tarflow."""
    path = checkout / "transformer_flow.py"
    spec = importlib.util.spec_from_file_location("reference_transformer_flow", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"{checkout} holds no transformer_flow.py; name a checkout of apple/ml-tarflow.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def count_parameters(module: nn.Module) -> int:
    """Numbers that training may change."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
