"""How fast a flow is inverted: sequential, Jacobi, fixed windows and Auto, in one run, by the same weights.

    python benchmarks/decoding.py
    python benchmarks/decoding.py --flows random --batch 1 16 --reference /path/to/ml-tarflow

Flows: the shipped Ace-A-Nme (20 tokens of 3 numbers); digits, trained here as benchmarks/image_bits.py does, with
a token a row (8) and a token a pixel (64); and a larger one of random weights (256 tokens, 8 maps of 4 layers, 256
channels), whose output layers are scaled so that shifts and log-scales have a root mean square of 0.1, which is about
that of the trained flows (printed). "re-concatenated" is sequential decoding that keeps lists of keys and values and
joins them in every step and layer, as the public code does; with --reference, that code itself is timed (a checkout of
apple/ml-tarflow; weights of its own). Times are medians over rounds in which all take turns. error: the largest
difference in x from sequential decoding, with x scaled to unit variance. memory: how much the
resident set grew at most during one call (Linux). Auto's plan is made before, and not in its time.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import image_bits
import torch
from common import argument_parser, load_reference, markdown_table, median_seconds, prepare, random_tarflow
from torch import Tensor, nn

from examples.digits.data import parts
from molecular.flows.molecule_flow import MoleculeFlow
from nflib import Flow, decoding
from nflib.flows import TARFlow
from nflib.networks import KeyValueCache
from nflib.transforms import AutoregressiveTransform

SHIPPED = Path(__file__).parents[1] / "molecular" / "shipped" / "Ace-A-Nme"
TOLERANCE = decoding.Auto().tolerance
DECODERS = ("sequential", "re-concatenated", "window 4", "window 16", "window 64", "Jacobi", "Auto")


class ConcatenatedCache(KeyValueCache):
    """Lists of keys and values, joined anew for every layer and step."""

    def __init__(self, num_layers: int) -> None:
        self.parts: list[list[Tensor]] = [[] for _ in range(num_layers)]

    def write(self, layer: int, start: int, *key_value: Tensor) -> Tensor:
        self.parts[layer].append(torch.cat(key_value, dim=1))
        return torch.cat(self.parts[layer], dim=2)

    def mask(self, new: int, total: int) -> None:
        return None


class Reconcatenated:
    """Token by token, with a `ConcatenatedCache`."""

    @torch.no_grad()
    def __call__(
        self, map: Any, noise: Tensor, encoded_context: Any, prefix: Tensor | None = None
    ) -> decoding.Inversion:
        cache = ConcatenatedCache(len(map.network.layers))
        u, logabsdet = noise.clone(), noise.new_zeros(len(noise))
        for t in range(noise.shape[1]):
            shift, log_scale = map.conditionals(u, encoded_context, cache, t, t + 1)
            u[:, t : t + 1] = shift + noise[:, t : t + 1] * log_scale.exp()
            logabsdet = logabsdet + log_scale.flatten(1).sum(-1)
        return decoding.Inversion(u, logabsdet, 0.0)


def ace(arguments: argparse.Namespace) -> Flow:
    return MoleculeFlow.from_pretrained(SHIPPED)


def digits(patch_size: int) -> Callable[[argparse.Namespace], Flow]:
    def build() -> TARFlow:
        return TARFlow((64,), patch_size=patch_size, channels=64, num_blocks=6, layers_per_block=2, dropout=0.25)

    def trained(arguments: argparse.Namespace) -> Flow:
        data = parts()
        setting = image_bits.Setting("affine", build, lambda flow, z, labels: flow.log_prob(z), 3e-3, 0.1)
        preprocess = image_bits.Gaussianize(data["train"].levels)
        return image_bits.train(setting, data, preprocess, arguments.train_seconds, arguments.seed).model

    return trained


def random_weights(arguments: argparse.Namespace) -> TARFlow:
    """The sizes of benchmarks/likelihood.py."""
    return random_tarflow((3, 64, 64), 4, 256, 8, 4)


FLOWS: dict[str, Callable[[argparse.Namespace], Flow]] = {
    "Ace-A-Nme": ace,
    "digits, rows": digits(8),
    "digits, pixels": digits(1),
    "random": random_weights,
}


def maps(flow: nn.Module) -> list[AutoregressiveTransform]:
    return [module for module in flow.modules() if isinstance(module, AutoregressiveTransform)]


def parameter_size(flow: Flow, seed: int) -> str:
    """Root mean squares of shifts and log-scales over samples, smallest and largest over the maps."""
    sizes: list[float] = []

    def decode(map: Any, noise: Tensor, encoded_context: Any, prefix: Tensor | None = None) -> decoding.Inversion:
        inversion = decoding.Jacobi(1e-3)(map, noise, encoded_context)
        parameters = torch.cat(map.conditionals(inversion.tokens, encoded_context))
        sizes.append(parameters.square().mean().sqrt().item())
        return inversion

    flow.sample(8, seed=seed, decoding=decode)
    return f"{min(sizes):.2f} to {max(sizes):.2f}"


def peak_mebibytes(call: Callable[[], object]) -> str:
    """How much the resident set grows during a call, from /proc; "–" where the system does not tell."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists() or not clear.exists():
        return "–"
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    clear.write_text("5")  # sets the peak to the present
    before = _kibibytes(status, "VmRSS")
    call()
    return f"{(_kibibytes(status, 'VmHWM') - before) / 1024:.0f}"


def _kibibytes(status: Path, name: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def reference_seconds(checkout: Path, batch: int, rounds: int) -> float:
    """The public code's own inversion of a model of the sizes of the random flow."""
    model = load_reference(checkout).Model(3, 64, 4, 256, 8, 4).eval()
    noise = torch.randn(batch, 256, 48)
    with torch.no_grad():
        if rounds > 1:
            return median_seconds({"reference": lambda: model.reverse(noise.clone())}, rounds)["reference"]
        begin = time.perf_counter()
        model.reverse(noise)
        return time.perf_counter() - begin


def compare(name: str, flow: Flow, batch: int, arguments: argparse.Namespace) -> list[list[object]]:
    """The rows of one flow and batch size."""
    num_tokens = flow._distribution.shape[0]
    auto = decoding.Auto()
    if "Auto" in arguments.decoders:
        auto = decoding.Auto(decoding.plan(flow, [batch], seed=arguments.seed, num_samples=arguments.fit_samples))
        print(f"{name}, batch {batch}\n{auto.plan}\n", flush=True)
    decoders: dict[str, Any] = {"sequential": decoding.Sequential(), "re-concatenated": Reconcatenated()}
    for window in (4, 16, 64):
        if window < num_tokens:
            decoders[f"window {window}"] = decoding.GaussSeidelJacobi(window, TOLERANCE)
    decoders |= {"Jacobi": decoding.Jacobi(TOLERANCE), "Auto": auto}
    seed = arguments.seed + 7
    calls = {
        kind: (lambda decoder=decoder: flow.sample(batch, seed=seed, decoding=decoder))
        for kind, decoder in decoders.items()
        if kind in arguments.decoders
    }
    scale = flow.sample(32, seed=seed + 1, decoding=decoding.Jacobi(TOLERANCE)).var(0).mean().sqrt().item()
    rows: dict[str, list[object]] = {}
    seconds: dict[str, float] = {}
    exact = None
    for kind, call in calls.items():
        results: list[Tensor] = []
        begin = time.perf_counter()
        peak = peak_mebibytes(lambda call=call, results=results: results.append(call()))
        seconds[kind] = time.perf_counter() - begin
        exact = results[0] if exact is None else exact
        error = (results[0] - exact).abs().max().item() / scale
        rows[kind] = [f"{error:.0e}", peak]
    quick = {kind: call for kind, call in calls.items() if max(seconds.values()) < arguments.slow}
    seconds |= median_seconds(quick, arguments.rounds) if quick else {}
    if arguments.reference is not None and name == "random":
        seconds["public code"] = reference_seconds(arguments.reference, batch, 3 if quick else 1)
        rows["public code"] = ["–", "–"]
    table: list[list[object]] = []
    for kind, taken in seconds.items():
        sweeps = "–"
        if kind in quick:
            with decoding.report() as report:
                calls[kind]()
            sweeps = f"{report.sweeps / len(report.blocks):.1f}" if report.blocks else str(num_tokens)
        ratio = seconds["sequential"] / taken
        table.append([name, batch, kind, f"{1e3 * taken:.1f}", f"{ratio:.2f}", sweeps, *rows[kind]])
    return table


def memory_rows() -> list[list[object]]:
    """Peak memory of sequential decoding for longer and longer sequences."""
    rows: list[list[object]] = []
    for num_tokens in (256, 512, 1024):
        torch.manual_seed(0)
        flow = TARFlow((num_tokens, 8), patch_size=8, channels=256, num_blocks=1, layers_per_block=4).eval()
        for kind, decoder in {"sequential": decoding.Sequential(), "re-concatenated": Reconcatenated()}.items():
            peak = peak_mebibytes(lambda flow=flow, decoder=decoder: flow.sample(16, seed=0, decoding=decoder))
            cache = 4 * 2 * 16 * (num_tokens - 1) * 256 * 4 / 2**20
            rows.append([num_tokens, kind, f"{cache:.0f}", peak])
    return rows


def main() -> None:
    """Print a table for each flow and batch size, then that of memory."""
    parser = argument_parser(__doc__)
    parser.add_argument("--flows", nargs="+", choices=FLOWS, default=list(FLOWS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--decoders", nargs="+", choices=DECODERS, default=DECODERS, help="sequential first")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slow", type=float, default=5.0, help="one call only where one takes more seconds")
    parser.add_argument("--train_seconds", type=float, default=60.0, help="of each digits flow")
    parser.add_argument("--fit_samples", type=int, default=1024, help="samples that first guesses are fitted to")
    parser.add_argument("--reference", type=Path, help="a checkout of apple/ml-tarflow, timed beside")
    arguments = parser.parse_args()
    prepare(arguments)
    header = ["flow", "batch", "decoder", "ms", "times sequential", "sweeps a map", "error", "memory MiB"]
    for name in arguments.flows:
        flow = FLOWS[name](arguments)
        print(f"{name}: root mean square of shifts and log-scales {parameter_size(flow, arguments.seed)}\n", flush=True)
        for batch in arguments.batch:
            print(markdown_table(header, compare(name, flow, batch, arguments)), "\n", flush=True)
    print("Sequential decoding of 16 samples, 4 layers of 256 channels: memory\n")
    print(markdown_table(["tokens", "decoder", "cache MiB", "peak MiB"], memory_rows()))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
