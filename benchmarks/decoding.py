"""How fast a flow is inverted: sequential, Jacobi, fixed windows and Auto, in one run, by the same weights.

    python benchmarks/decoding.py
    python benchmarks/decoding.py --flows random --batch 1 16 --reference /path/to/ml-tarflow
    python benchmarks/decoding.py --flows AAA "Prose, small" --batch 1 16 256 --fit_samples 256

Flows: those shipped of Ace-A-Nme and AAA, one deep block of atoms (20 and 31 tokens of 3 numbers); Prose's architecture
for AAA (33 atoms, affine maps over positions), of random weights, as small as the shipped flow and of the published
sizes (8 maps of 8 layers, 384 channels); digits, Gaussianised pixel by pixel and trained here, with a
token a row (8) and a token a pixel (64); and a larger one of random weights (256 tokens, 8 maps of 4 layers, 256
channels), whose output layers are scaled so that shifts and log-scales have a root mean square of 0.1, which is about
that of the trained flows (printed). "re-concatenated" is sequential decoding that keeps lists of keys and values and
joins them in every step and layer, as the public code does; with --reference, that code itself is timed (a checkout of
apple/ml-tarflow; weights of its own). Times are medians over rounds in which all take turns. error: the largest
difference in x from sequential decoding, with x scaled to unit variance. memory: how much the
resident set grew at most during one call (Linux). Auto's plan is made before, by the wall's clock, and not in its time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import (
    argument_parser,
    count_parameters,
    load_reference,
    markdown_table,
    median_seconds,
    peak_and_seconds,
    prepare,
    random_tarflow,
    trained,
    with_random_weights,
)
from digit_pixels import PIXELS, Gaussianize, dequantising
from torch import Tensor

from examples.digits.data import parts
from molecular import MoleculeFlow, Peptide, Prose
from molecular.sampling.shipped import SHIPPED
from nflib import Flow, decoding
from nflib.flows import TARFlow
from nflib.networks import KeyValueCache
from nflib.transforms.causal_map import AffineAutoregressive

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
            conditionals = map.conditionals(u, encoded_context, cache, t, t + 1)
            u[:, t : t + 1], of_token = map.from_noise(noise[:, t : t + 1], conditionals)
            logabsdet = logabsdet + of_token.flatten(1).sum(-1)
        return decoding.Inversion(u, logabsdet, 0.0)


class Case(NamedTuple):
    """A flow, and the one context that it is given, ``(1, ...)``."""

    flow: Flow
    context: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return int(self.flow._distribution.shape[0] if self.context is None else self.context.shape[1])

    def draw(self, number: int, seed: int, decoder: Any) -> Tensor:
        """Samples ``(number, ...)``."""
        x = self.flow.sample(number, self.context, seed=seed, decoding=decoder)
        return x if self.context is None else x[0]


def shipped(peptide: str) -> Callable[[argparse.Namespace], Case]:
    return lambda arguments: Case(MoleculeFlow.from_pretrained(SHIPPED / peptide))


def prose(**settings: Any) -> Callable[[argparse.Namespace], Case]:
    def build(arguments: argparse.Namespace) -> Case:
        flow = Prose(**settings)
        context = flow.context(Peptide("AAA"))
        return Case(with_random_weights(flow, context), context)

    return build


def digits(patch_size: int) -> Callable[[argparse.Namespace], Case]:
    def build(arguments: argparse.Namespace) -> Case:
        data = parts()
        preprocess = Gaussianize(data["train"].levels)
        gaussianised = dequantising(lambda x: preprocess(x)[0])
        torch.manual_seed(arguments.seed)
        flow = TARFlow((PIXELS,), patch_size, channels=64, num_blocks=6, layers_per_block=2, dropout=0.25)
        trained(
            flow,
            data["train"].levels,
            arguments.train_seconds,
            arguments.seed,
            augment=gaussianised,
            validation=gaussianised(data["validation"].levels, torch.Generator().manual_seed(0)),
            batch_size=64,
            learning_rate=3e-3,
            weight_decay=0.1,
            gradient_clip=10.0,
            ema_decay=0.99,
            validation_interval=None,
            validation_seconds=arguments.train_seconds / 40,
        )
        return Case(flow)

    return build


def random_weights(arguments: argparse.Namespace) -> Case:
    """The sizes of benchmarks/likelihood.py."""
    return Case(random_tarflow((3, 64, 64), 4, 256, 8, 4))


FLOWS: dict[str, Callable[[argparse.Namespace], Case]] = {
    "Ace-A-Nme": shipped("Ace-A-Nme"),
    "AAA": shipped("AAA"),
    "Prose, small": prose(channels=36, layers_per_block=2, head_dim=18),
    "Prose, published": prose(),
    "digits, rows": digits(8),
    "digits, pixels": digits(1),
    "random": random_weights,
}


def parameter_size(case: Case, seed: int) -> str:
    """Root mean squares of shifts and log-scales over samples, smallest and largest over the maps; "–" of splines."""
    sizes: list[float] = []

    def decode(map: Any, noise: Tensor, encoded_context: Any, prefix: Tensor | None = None) -> decoding.Inversion:
        inversion = decoding.Jacobi(1e-3)(map, noise, encoded_context)
        if isinstance(map, AffineAutoregressive):
            parameters = torch.cat(map.conditionals(inversion.tokens, encoded_context))
            sizes.append(parameters.square().mean().sqrt().item())
        return inversion

    case.draw(8, seed, decode)
    return f"{min(sizes):.2f} to {max(sizes):.2f}" if sizes else "–"


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


def compare(name: str, case: Case, batch: int, arguments: argparse.Namespace) -> list[list[object]]:
    """The rows of one flow and batch size."""
    clock = time.process_time if arguments.processor_time else time.perf_counter
    auto = decoding.Auto()
    if "Auto" in arguments.decoders:
        options = {"seed": arguments.seed, "num_samples": arguments.fit_samples}
        auto = decoding.Auto(decoding.plan(case.flow, [batch], case.context, **options))
        print(f"{name}, batch {batch}\n{auto.plan}\n", flush=True)
    decoders: dict[str, Any] = {"sequential": decoding.Sequential(), "re-concatenated": Reconcatenated()}
    for window in (4, 16, 64):
        if window < case.num_tokens:
            decoders[f"window {window}"] = decoding.GaussSeidelJacobi(window, TOLERANCE)
    decoders |= {"Jacobi": decoding.Jacobi(TOLERANCE), "Auto": auto}
    seed = arguments.seed + 7
    calls = {
        kind: partial(case.draw, batch, seed, decoder)
        for kind, decoder in decoders.items()
        if kind in arguments.decoders
    }
    scale = case.draw(8, seed + 1, decoding.Sequential()).var(0).mean().sqrt().item()
    rows: dict[str, list[object]] = {}
    seconds: dict[str, float] = {}
    exact = None
    for kind, call in calls.items():
        results: list[Tensor] = []
        begin = clock()
        peak, _ = peak_and_seconds(lambda: results.append(call()))  # noqa: B023, called at once
        seconds[kind] = clock() - begin
        exact = results[0] if exact is None else exact
        error = (results[0] - exact).abs().max().item() / scale
        rows[kind] = [f"{error:.0e}", f"{peak:.0f}"]
    quick = {kind: call for kind, call in calls.items() if max(seconds.values()) < arguments.slow}
    seconds |= median_seconds(quick, arguments.rounds, clock) if quick else {}
    if arguments.reference is not None and name == "random":
        seconds["public code"] = reference_seconds(arguments.reference, batch, 3 if quick else 1)
        rows["public code"] = ["–", "–"]
    table: list[list[object]] = []
    for kind, taken in seconds.items():
        sweeps = "–"
        if kind in quick:
            with decoding.report() as report:
                calls[kind]()
            sweeps = f"{report.sweeps / len(report.blocks):.1f}" if report.blocks else str(case.num_tokens)
        ratio = seconds["sequential"] / taken
        figures = [f"{1e3 * taken:.1f}", f"{batch / taken:.3g}", f"{ratio:.2f}", sweeps]
        table.append([name, batch, kind, *figures, *rows[kind]])
    return table


def memory_rows() -> list[list[object]]:
    """Peak memory of sequential decoding for longer and longer sequences."""
    rows: list[list[object]] = []
    decoders: dict[str, decoding.Decoder] = {"sequential": decoding.Sequential(), "re-concatenated": Reconcatenated()}
    for num_tokens in (256, 512, 1024):
        torch.manual_seed(0)
        flow = TARFlow((num_tokens, 8), patch_size=8, channels=256, num_blocks=1, layers_per_block=4).eval()
        for kind, decoder in decoders.items():
            peak, _ = peak_and_seconds(partial(flow.sample, 16, seed=0, decoding=decoder))
            cache = 4 * 2 * 16 * (num_tokens - 1) * 256 * 4 / 2**20
            rows.append([num_tokens, kind, f"{cache:.0f}", f"{peak:.0f}"])
    return rows


def main() -> None:
    """Print a table for each flow and batch size, then that of memory."""
    parser = argument_parser(__doc__)
    parser.add_argument("--flows", nargs="+", choices=FLOWS, default=[name for name in FLOWS if "Prose" not in name])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--decoders", nargs="+", choices=DECODERS, default=DECODERS, help="sequential first")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slow", type=float, default=5.0, help="one call only where one takes more seconds")
    parser.add_argument("--train_seconds", type=float, default=60.0, help="of each digits flow")
    parser.add_argument("--fit_samples", type=int, default=1024, help="samples that first guesses are fitted to")
    parser.add_argument("--reference", type=Path, help="a checkout of apple/ml-tarflow, timed beside")
    parser.add_argument("--processor_time", action="store_true", help="of the process, not the wall (--threads 1)")
    arguments = parser.parse_args()
    prepare(arguments)
    header = ["flow", "batch", "decoder", "ms", "samples a second", "times sequential", "sweeps a map", "error"]
    header.append("memory MiB")
    for name in arguments.flows:
        case = FLOWS[name](arguments)
        size = parameter_size(case, arguments.seed)
        print(f"{name}: {count_parameters(case.flow):,} parameters, root mean square of shifts and log-scales {size}\n")
        for batch in arguments.batch:
            print(markdown_table(header, compare(name, case, batch, arguments)), "\n", flush=True)
    if "random" in arguments.flows:
        print("Sequential decoding of 16 samples, 4 layers of 256 channels: memory\n")
        print(markdown_table(["tokens", "decoder", "cache MiB", "peak MiB"], memory_rows()))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
