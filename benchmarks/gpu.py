"""What a GPU makes of it, in one run: densities, training, decoding, attention, energies and a STARFlow of 3 billion.

    make gpu                                                    # the tests marked `cuda`, then this
    python benchmarks/gpu.py --reference /path/to/ml-tarflow
    python benchmarks/gpu.py --device cpu --tiny                # every path in small, without a GPU

Each part is a process of its own under a limit of time; its rows are in the output file, JSON, as soon as they are
measured, and a part that fails or runs out of time is recorded there by name, and the others go on. Times are medians
of calls after a warm-up, with all that they started on the device.

share: of the rate at which this device multiplies matrices in the same precision (part "matmul"). Operations are those
of the linear maps and of causal attention alone; of a training step three times those of a forward pass. bf16 is
`torch.autocast` around float32 weights, but for the STARFlow, whose weights are bfloat16. error: the largest difference
from sequential decoding of the same noise, with x scaled to unit variance. "sequential, CUDA graph": one step over one
token with shapes that never change, captured once and replayed. "prepared in s": capturing, or Auto's measurements, and
the first samples. "apple/ml-tarflow" is the public code's own inversion of a model of the same sizes. The STARFlow has
the layout of the released 3B text-to-image model, 1024 tokens for 256 × 256 pixels given 128 words, and random weights.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    argument_parser,
    count_parameters,
    load_reference,
    machine,
    markdown_table,
    operations,
    random_tarflow,
    seconds_a_call,
    synchronise,
)
from torch import Tensor, nn

from nflib import decoding
from nflib.flows import TARFlow
from nflib.networks import CausalTransformer, KeyValueCache
from nflib.networks.attention import CausalSelfAttention
from nflib.networks.backends import causal_attention, check_backend
from nflib.networks.positions import LearnedPositions
from nflib.networks.step import Step
from nflib.transforms import TransformerAffineAutoregressive

TOLERANCE = decoding.Auto().tolerance
LAYOUTS = Path(__file__).parents[1] / "tests" / "golden" / "released_checkpoint_layouts.json"
STATIC, PEER = "sequential, CUDA graph", "apple/ml-tarflow"
PRECISIONS = ("fp32", "tf32", "bf16")


class Part:
    """One part of the run: where and how large it is, and the rows that it has measured."""

    def __init__(self, name: str, arguments: argparse.Namespace):
        self.name = name
        self.device = torch.device(arguments.device)
        self.tiny: bool = arguments.tiny
        self.seed: int = arguments.seed
        self.reference: Path | None = arguments.reference
        self.output: Path = arguments.output
        self.seconds = 0.05 if arguments.tiny else 2.0  # for each measurement

    def add(self, **row: Any) -> None:
        """Keep a row, also should the next measurement be the last."""
        document = json.loads(self.output.read_text())
        document["parts"][self.name]["rows"].append(row)
        write(self.output, document)

    @contextmanager
    def attempt(self, **row: Any) -> Iterator[dict[str, Any]]:
        """A row to be filled in by the block, whose error becomes the row's."""
        try:
            yield row
        except Exception as error:
            row["not measured"] = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
        self.add(**row)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def time(self, function: Callable[[], object], is_warm: bool = False) -> float:
        return seconds_a_call(function, self.device, self.seconds, is_warm=is_warm)

    def peak(self, function: Callable[[], object]) -> float | None:
        """GiB of the device that are in use at most during a call."""
        if self.device.type != "cuda":
            function()
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        function()
        synchronise(self.device)
        return torch.cuda.max_memory_allocated(self.device) / 2**30

    def share(self, precision: str, rate: float) -> float | None:
        """Percent of the matrix rate that the part "matmul" has measured, of `rate` in TFLOP/s."""
        rows = json.loads(self.output.read_text())["parts"].get("matmul", {}).get("rows", [])
        rates = {row["precision"]: row["TFLOP/s"] for row in rows if "TFLOP/s" in row}
        return 100 * rate / rates[precision] if precision in rates else None


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """float32 proper, with matrix products in TF32, or under autocast to bfloat16."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


# --- densities and training, against the matrix rate -------------------------------------------------


def matmul(part: Part) -> None:
    """Square matrix products, and a copy on the device."""
    size = 64 if part.tiny else 8192
    for precision in PRECISIONS:
        with part.attempt(precision=precision, size=size) as row, arithmetic(precision, part.device):
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            a, b = (torch.randn(size, size, device=part.device).to(dtype) for _ in range(2))
            seconds = part.time(partial(torch.mm, a, b))
            row |= {"ms": 1e3 * seconds, "TFLOP/s": 2 * size**3 / seconds / 1e12}
    with part.attempt(precision="copy", size=size) as row:
        source = torch.zeros(8 * size, size, device=part.device)
        target = torch.empty_like(source)
        seconds = part.time(lambda: target.copy_(source))
        row |= {"ms": 1e3 * seconds, "GB/s": 2 * source.numel() * 4 / seconds / 1e9}


def tarflow(part: Part) -> TARFlow:
    """What densities and training are measured on."""
    sizes = ((1, 8, 8), 2, 64, 2, 1) if part.tiny else ((3, 64, 64), 4, 768, 8, 4)
    torch.manual_seed(part.seed)
    with part.device:
        return random_tarflow(*sizes)


def flow_operations(flow: Any, batch: int) -> float:
    tokens = flow._distribution.shape[0]
    return batch * sum(operations(m, tokens - 1) for m in flow.modules() if isinstance(m, CausalTransformer))


def largest_batch(part: Part, row: dict[str, Any], run: Callable[[Tensor], object], flow: Any) -> Tensor:
    """Inputs of 64 events, or of as many as fit; the row gets batch and peak memory."""
    batch = 4 if part.tiny else 64
    while True:
        x = torch.randn(batch, *flow.event_shape, device=part.device)
        try:
            row |= {"batch": batch, "peak GiB": part.peak(partial(run, x))}
            return x
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
        torch.cuda.empty_cache()


def throughput(part: Part, row: dict[str, Any], flow: Any, run: Callable[[Tensor], object], passes: int) -> None:
    x = largest_batch(part, row, run, flow)
    seconds = part.time(lambda: run(x), is_warm=True)
    rate = passes * flow_operations(flow, len(x)) / seconds / 1e12
    row |= {
        "ms": 1e3 * seconds,
        "events/s": len(x) / seconds,
        "TFLOP/s": rate,
        "share %": part.share(row["precision"], rate),
    }


@torch.no_grad()
def log_prob(part: Part) -> None:
    """`log_prob` of a TARFlow of 256 tokens, 8 maps of 4 layers, 768 channels."""
    flow = tarflow(part)
    x = torch.randn(2, *flow.event_shape, device=part.device)
    exact = flow(x)
    for precision in PRECISIONS:
        with (
            part.attempt(precision=precision, millions=count_parameters(flow) / 1e6) as row,
            arithmetic(precision, part.device),
        ):
            row["largest error, nats"] = float((flow(x) - exact).abs().max())
            throughput(part, row, flow, flow, 1)


def training(part: Part) -> None:
    """A training step on that TARFlow: density, gradient, clipping and AdamW, as `nflib.training.fit` makes them."""
    from nflib.training import TrainingConfig
    from nflib.training.optimizer import clip_gradient, make_optimizers

    for precision in PRECISIONS:
        with part.attempt(precision=precision) as row:
            flow = tarflow(part).train()
            optimizer = make_optimizers(flow, TrainingConfig(max_steps=1, learning_rate=1e-5), part.device)["optimizer"]

            def step(x: Tensor, flow: nn.Module = flow, optimizer: Any = optimizer, precision: str = precision) -> None:
                with arithmetic(precision, part.device):
                    loss = -flow(x).mean()
                loss.backward()
                clip_gradient(flow.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            throughput(part, row, flow, step, 3)
            del flow, optimizer, step


# --- decoding ----------------------------------------------------------------------------------------


class StaticStep(KeyValueCache):
    """A step of sequential decoding whose shapes never change, over the modules of a TARFlow's map.

    The position is a tensor on the device, keys and values are written at it into storage of the full length, and
    attention runs over that length under a mask: what a CUDA graph can replay.
    """

    def __init__(self, map: TransformerAffineAutoregressive, noise: Tensor, is_captured: bool):
        self.map, self.network = map, map.network
        positions, start_token = self.network.positions, self.network.start_token
        if self.network.uses_context or start_token is not None or not isinstance(positions, LearnedPositions):
            raise ValueError("the static step is written for a TARFlow with learned positions, and without a context.")
        self.positions = positions.weight
        batch, tokens, _ = noise.shape
        length = -(-(tokens - 1) // 8) * 8  # a multiple of 8, as fast attention wants its mask
        attention = next(part for part in self.network.modules() if isinstance(part, CausalSelfAttention))
        sizes = (len(self.network.layers), batch, attention.num_key_value_heads, length, attention.head_dim)
        super().__init__(*sizes, dtype=noise.dtype, device=noise.device)
        self.storage.zero_()
        self.places = torch.arange(length, device=noise.device)
        self.position = torch.zeros(1, dtype=torch.long, device=noise.device)
        self.noise, self.u = noise.clone(), noise.clone()
        self.logabsdet = noise.new_zeros(batch)
        self.graph: torch.cuda.CUDAGraph | None = None
        if is_captured:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self.position.zero_()
                    self.step()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.step()

    def write(self, layer: int, start: int, *key_value: Tensor) -> Tensor:
        self.storage[layer].index_copy_(2, self.position, torch.cat(key_value, dim=1))
        return self.storage[layer]

    def step(self) -> None:
        """From the token at the position to the one after it."""
        network, following = self.network, self.position + 1
        x = network.proj_in(self.u.index_select(1, self.position))
        x = x + self.positions.index_select(0, self.position)
        mask = torch.zeros_like(self.places, dtype=x.dtype).masked_fill(self.places > self.position, -math.inf)
        step = Step(0, self, mask=mask.unsqueeze(0))
        for index, layer in enumerate(network.layers):
            x = layer(x, step, index)
        raw_scale, shift = network.clip(network.proj_out(network.final_norm(x))).chunk(2, dim=-1)
        log_scale = self.map.scale(raw_scale)
        new, _ = self.map.from_noise(self.noise.index_select(1, following), (shift, log_scale))
        self.u.index_copy_(1, following, new)
        self.logabsdet += log_scale.flatten(1).sum(-1)
        self.position += 1

    def solve(self, noise: Tensor) -> decoding.Inversion:
        self.noise.copy_(noise)
        self.u.copy_(noise)
        self.logabsdet.zero_()
        self.position.zero_()
        for _ in range(noise.shape[1] - 1):
            if self.graph is None:
                self.step()
            else:
                self.graph.replay()
        return decoding.Inversion(self.u.clone(), self.logabsdet.clone(), 0.0)


class StaticSequential:
    """A decoder of `StaticStep`s, one for each map, made when first needed."""

    def __init__(self, is_captured: bool):
        self.is_captured = is_captured
        self.steps: dict[int, StaticStep] = {}

    @torch.no_grad()
    def __call__(
        self, map: Any, noise: Tensor, encoded_context: Any, prefix: Tensor | None = None
    ) -> decoding.Inversion:
        if id(map) not in self.steps:
            self.steps[id(map)] = StaticStep(map, noise, self.is_captured)
        return self.steps[id(map)].solve(noise)


def decoders(part: Part, flow: TARFlow, batch: int) -> dict[str, Callable[[], Any]]:
    """What makes each decoder for a flow and a batch size, by name; the slow ones last."""

    def auto() -> decoding.Auto:
        return decoding.Auto(decoding.plan(flow, [batch], seed=part.seed, num_samples=min(batch, 64)))

    windows = (4, 8) if part.tiny else (16, 64)
    return {
        "sequential": decoding.Sequential,
        STATIC: partial(StaticSequential, part.device.type == "cuda"),
        **{f"window {window}": partial(decoding.GaussSeidelJacobi, window, TOLERANCE) for window in windows},
        "Jacobi": partial(decoding.Jacobi, TOLERANCE),
        **({} if part.reference is None else {PEER: type(None)}),  # it decodes by itself
        "Auto": auto,
    }


@torch.no_grad()
def decode(part: Part) -> None:
    """Samples of a TARFlow of 256 tokens, 8 maps of 4 layers, 256 channels, float32."""
    sizes = ((1, 8, 8), 2, 64, 2, 1) if part.tiny else ((3, 64, 64), 4, 256, 8, 4)
    torch.manual_seed(part.seed)
    with part.device:
        flow = random_tarflow(*sizes)
    sequential: dict[int, float] = {}
    exact: dict[int, Tensor] = {}
    for name in decoders(part, flow, 1):
        for batch in (1, 3) if part.tiny else (1, 16, 64, 256):
            with part.attempt(batch=batch, decoder=name) as row:
                begin = time.perf_counter()
                decoder = decoders(part, flow, batch)[name]()

                sample: Callable[[], Any] = partial(flow.sample, batch, seed=part.seed, decoding=decoder)
                if name == PEER:
                    sample = peer(part, sizes, torch.randn(batch, *flow._distribution.shape, device=part.device))
                    sample()
                else:
                    with decoding.report() as report:
                        x = sample()
                    exact.setdefault(batch, x)
                    row["error"] = float((x - exact[batch]).abs().max() / exact[batch].std())
                    if report.blocks:
                        row["sweeps a map"] = report.sweeps / len(report.blocks)
                if name in (STATIC, "Auto"):
                    row["prepared in s"] = time.perf_counter() - begin
                row["peak GiB"] = part.peak(sample)
                seconds = part.time(sample, is_warm=True)
                sequential.setdefault(batch, seconds)
                row |= {"ms": 1e3 * seconds, "samples/s": batch / seconds}
                row["times sequential"] = sequential[batch] / seconds
                if name == STATIC and not row["error"] < 1e-3:
                    raise ValueError("the static step gives other samples than sequential decoding.")


def peer(part: Part, sizes: tuple[Any, ...], noise: Tensor) -> Callable[[], Any]:
    """The public code's own inversion of a model of these sizes."""
    assert part.reference is not None
    (channels, side, _), *others = sizes
    model = load_reference(part.reference).Model(channels, side, *others).eval().to(part.device)
    return lambda: model.reverse(noise.clone())


# --- a STARFlow of 3 billion -------------------------------------------------------------------------


def materialise(flow: nn.Module, device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Random weights for a flow on the meta device; its tables are there already, and keep their precision."""
    for module in flow.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = torch.zeros(parameter.shape, dtype=dtype, device=device)
            if isinstance(module, nn.LayerNorm) and name == "weight":
                value.fill_(1.0)
            elif parameter.dim() > 1 or name == "start_token":
                value.normal_(0.0, 0.02, generator=generator)
            setattr(module, name, nn.Parameter(value, requires_grad=False))
    for module in flow.modules():
        if isinstance(module, CausalTransformer):
            module.proj_out.weight.mul_(0.05)  # shifts of about 0.05
    flow.to(device)


@torch.no_grad()
def starflow_3b(part: Part) -> None:
    """Densities and samples of a STARFlow of 3.9 billion weights in bfloat16."""
    from video import STARFlow
    from video.conversion.released_config import read_released_config, starflow_settings

    config = json.loads(LAYOUTS.read_text())["starflow_3B_t2i_256x256"]["config"]
    if part.tiny:
        config |= {"channels": 64, "layers_per_block": [1, 1, 2], "num_blocks": 3, "img_size": 4, "txt_size": 3}
    arguments = read_released_config(config)
    settings, *_ = starflow_settings(arguments, arguments["txt_dim"])
    begin = time.perf_counter()
    with torch.device("meta"):
        flow = STARFlow(**settings)
    materialise(flow, part.device, torch.bfloat16, torch.Generator(part.device).manual_seed(part.seed))
    flow.eval()
    synchronise(part.device)
    weights = sum(p.numel() for p in flow.parameters())
    weights_gib = sum(p.numel() * p.element_size() for p in flow.parameters()) / 2**30
    tokens, words = flow._distribution.frame_length, settings["text_length"]
    part.add(
        task="build", **{"billion weights": weights / 1e9, "weights GiB": weights_gib, "s": time.perf_counter() - begin}
    )
    *shallow, deep = [m for m in flow.modules() if isinstance(m, CausalTransformer)]
    needed = sum(operations(network, tokens) for network in shallow) + operations(deep, tokens + words)
    calls: list[tuple[str, int, Any]] = [("log_prob", batch, None) for batch in (1, 16)]
    calls += [("sequential", batch, decoding.Sequential()) for batch in (1, 16, 64)]
    calls += [("window 64", batch, decoding.GaussSeidelJacobi(64, 1e-2)) for batch in (1, 16)]
    exact: dict[int, Tensor] = {}
    for name, batch, decoder in calls:
        batch = min(batch, 2) if part.tiny else batch
        with part.attempt(task=name, batch=batch) as row:
            generator = torch.Generator(part.device).manual_seed(part.seed)
            x = torch.randn(batch, *settings["event_shape"], device=part.device, generator=generator)
            text = torch.randn(
                batch, words, settings["text_channels"], device=part.device, generator=generator
            ).bfloat16()

            def run(x: Tensor = x, text: Tensor = text, decoder: Any = decoder) -> Tensor:
                if decoder is None:
                    return flow.log_prob(x, text)
                return flow.sample(1, text, seed=part.seed, decoding=decoder)

            results: list[Tensor] = []
            row["peak GiB"] = part.peak(lambda: results.append(run()))  # noqa: B023, called at once
            row["finite"] = bool(results[0].isfinite().all())
            if decoder is not None:
                exact.setdefault(batch, results[0])
                row["error"] = float((results[0] - exact[batch]).abs().max() / exact[batch].std())
            seconds = part.time(run, is_warm=True)
            row |= {"s": seconds, "tokens/s": batch * tokens / seconds, "events/s": batch / seconds}
            if decoder is None:
                rate = batch * needed / seconds / 1e12
                row |= {"TFLOP/s": rate, "share %": part.share("bf16", rate)}


# --- attention and energies --------------------------------------------------------------------------


def attention(part: Part) -> None:
    """Attention by torch and by xformers, in bfloat16."""
    size = 16 if part.tiny else 1
    shapes: dict[str, tuple[int, int, int, int, int]] = {  # batch, heads, key heads, new tokens, all tokens
        "whole sequence": (64, 12, 12, 256, 256),
        "whole, long": (16, 48, 48, 1152, 1152),
        "grouped heads": (16, 48, 8, 1152, 1152),
        "window": (16, 48, 48, 64, 1152),
        "one token": (64, 48, 48, 1, 1152),
    }
    for name, (batch, heads, groups, new, total) in shapes.items():
        batch, new, total = -(-batch // size), -(-new // size), -(-total // size)
        query, key, value = inputs = [
            torch.randn(batch, h, n, 64, device=part.device, dtype=torch.bfloat16, requires_grad=True)
            for h, n in ((heads, new), (groups, total), (groups, total))
        ]
        expected: Tensor | None = None
        for backend in ("torch", "xformers"):
            with part.attempt(shape=name, batch=batch, heads=heads, new=new, total=total, backend=backend) as row:
                attend = partial(causal_attention, query, key, value, backend=backend)

                def differentiate(inputs: Sequence[Tensor] = inputs, attend: Any = attend) -> object:
                    return torch.autograd.grad(attend().sum(), inputs)

                check_backend(backend)
                with torch.no_grad():
                    result = attend().float()
                    expected = result if expected is None else expected
                    row["largest difference"] = float((result - expected).abs().max())
                    row["forward ms"] = 1e3 * part.time(attend)
                row["forward and gradient ms"] = 1e3 * part.time(differentiate)


def energies(part: Part) -> None:
    """Energies and forces of peptides by the batched system, and by OpenMM on the CPU, one after the other."""
    from energies import openmm_evaluator, thermal_conformations

    from molecular import Peptide
    from molecular.energy import compile_system

    engines: dict[str, tuple[torch.dtype, bool]] = {
        "float32": (torch.float32, False),
        "float64": (torch.float64, False),
    }
    for sequence in ("AA",) if part.tiny else ("Ace-A-Nme", "AAAA"):
        peptide = Peptide(sequence)
        conformations = thermal_conformations(peptide, 64, part.seed)
        evaluate = openmm_evaluator(peptide.system, "CPU", {})
        with part.attempt(peptide=sequence, atoms=peptide.num_atoms, engine="OpenMM CPU", batch=16) as row:
            row["conformations/s"] = 16 / part.time(partial(evaluate, conformations[:16]))
        if sequence == "AAAA":  # the last one alone: fusing takes a minute
            engines["float32, compiled"] = (torch.float32, True)
        for engine, (dtype, is_fused) in engines.items():
            energy = compile_system(peptide.system, dtype, part.device, compile=is_fused)
            for batch in (64,) if part.tiny else (1024, 16384):
                with part.attempt(peptide=sequence, atoms=peptide.num_atoms, engine=engine, batch=batch) as row:
                    x = torch.from_numpy(conformations).to(part.device, dtype).repeat(batch // 64, 1, 1)
                    row["peak GiB"] = part.peak(partial(energy.energy_and_force, x))
                    seconds = part.time(partial(energy.energy_and_force, x), is_warm=True)
                    row |= {"ms": 1e3 * seconds, "conformations/s": batch / seconds}


# --- the run -----------------------------------------------------------------------------------------

# What runs, in which order, and for how many seconds at most.
PARTS: dict[str, tuple[Callable[[Part], None], float]] = {
    "matmul": (matmul, 40),
    "log_prob": (log_prob, 45),
    "training": (training, 60),
    "decoding": (decode, 170),
    "starflow_3b": (starflow_3b, 100),
    "attention": (attention, 40),
    "energies": (energies, 90),
}


def write(path: Path, document: dict[str, Any]) -> None:
    """Whole or not at all: a part may be stopped at any moment."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(path)


def shown(value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 100 <= abs(value) < 1e9 else f"{value:.3g}"


def tables(document: dict[str, Any]) -> str:
    """All parts in Markdown."""
    lines = [f"{document['device']}; {document['machine']}"]
    for name, part in document["parts"].items():
        lines.append(f"\n## {name}: {PARTS[name][0].__doc__} ({part.get('seconds', 0):.0f} s)\n")
        header = list(dict.fromkeys(key for row in part["rows"] for key in row))
        if header:
            lines.append(markdown_table(header, [[shown(row.get(key)) for key in header] for row in part["rows"]]))
        if part.get("error"):
            lines.append(f"\nNot finished: {part['error']}")
    return "\n".join(lines)


def run_apart(name: str, arguments: argparse.Namespace, seconds: float) -> str | None:
    """Run a part in a process of its own; returns what went wrong."""
    if seconds < 5:
        return "no time was left for it"
    try:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--part", name],
            stderr=subprocess.PIPE,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    if done.returncode == 0:
        return None
    print(done.stderr, file=sys.stderr, flush=True)
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def main() -> None:
    """Run the parts, write the output file, and print the tables, which also stand beside it as .md."""
    parser = argument_parser(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of this script, whose times mean nothing")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu.json"))
    parser.add_argument("--reference", type=Path, help="a checkout of apple/ml-tarflow, timed beside")
    parser.add_argument("--seconds", type=float, default=400.0, help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--part", choices=PARTS, help="run this one alone, here, into an output file that is there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    if arguments.part is not None:
        PARTS[arguments.part][0](Part(arguments.part, arguments))
        return
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("this torch sees no CUDA GPU; for a test of the script pass --device cpu --tiny.")
    device = arguments.device
    if device.startswith("cuda"):
        device = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    document: dict[str, Any] = {"device": device, "machine": machine(), "parts": {}}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    for name in arguments.parts:
        document["parts"][name] = {"rows": []}
        write(arguments.output, document)
        start = time.monotonic()
        error = run_apart(name, arguments, min(PARTS[name][1], arguments.seconds - (start - begin)))
        document = json.loads(arguments.output.read_text())
        document["parts"][name] |= {"seconds": time.monotonic() - start, "error": error}
        write(arguments.output, document)
        print(f"{name}: {error or 'done'}, {time.monotonic() - begin:.0f} s in all", file=sys.stderr, flush=True)
    text = tables(document)
    arguments.output.with_suffix(".md").write_text(text + "\n")
    print(text)
    failed = [name for name, part in document["parts"].items() if part["error"]]
    if failed:
        raise SystemExit(f"not finished: {', '.join(failed)}")


if __name__ == "__main__":
    main()
