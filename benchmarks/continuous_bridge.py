"""From a TARFlow to a flow map of a few passes, and back by exact weights.

    python benchmarks/continuous_bridge.py --threads 1

A TARFlow is trained on eight Gaussians on a circle (2 numbers, token by token), and on digits of 8 × 8 pixels,
dequantised and Gaussianised (64 numbers, 8 tokens). Its own sampler makes pairs of noise and samples, on which a
flow map is trained by MeanFlow, kept invertible; no data are used any more. The map draws in 1, 2 or 4 passes of its
network with an exact density of its own, by which its draws are weighted back to the TARFlow (E[w] is then 1) and, of
the Gaussians, to the target itself. Samples a second: without a density, as both are drawn in use.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from common import argument_parser, count_parameters, markdown_table, prepare, trained
from continuous import Density, eight_gaussians
from digit_pixels import PIXELS, Gaussianize, dequantising
from torch import Tensor

from examples.digits.data import parts
from nflib.continuous import FlowMap, Invertible, MeanFlow, MLPFlowMap, Pairs, pairs_of
from nflib.flows import TARFlow
from nflib.montecarlo import importance_sample
from nflib.training.feed import Augmentation

SETTINGS: dict[str, Any] = {
    "batch_size": 256,
    "learning_rate": 2e-3,
    "weight_decay": 0.01,
    "ema_decay": 0.995,
}


def samples_a_second(sample: Callable[[], object], number: int) -> float:
    """The best of three."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        sample()
        seconds.append(time.perf_counter() - start)
    return number / min(seconds)


def weighted(flow: Any, target: Any, number: int, seed: int) -> str:
    """E[w] and the share of effective samples, or that the map is refused."""
    try:
        samples = importance_sample(flow, target, number, seed=seed)
    except ValueError as refusal:
        return str(refusal).partition(":")[0]
    mean = math.exp(samples.log_normalizer)
    error = mean * samples.log_normalizer_standard_error
    return f"{mean:.3f} ± {error:.3f}, {samples.effective_sample_size_fraction:.3f}"


def main() -> None:
    """Train the TARFlow and the map of each data, and print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each training")
    parser.add_argument("--num_samples", type=int, default=2_000, help="draws that are weighted")
    parser.add_argument("--num_pairs", type=int, default=20_000, help="of the TARFlow, to train the map on")
    arguments = parser.parse_args()
    prepare(arguments)
    generator = torch.Generator().manual_seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    digits = parts()["train"]
    preprocess, gaussians = Gaussianize(digits.levels), eight_gaussians()
    cases: dict[str, tuple[TARFlow, Tensor, Augmentation | None, Density | None]] = {
        "eight Gaussians": (
            TARFlow((2,), 1, 64, 2, 2, conditional="spline", head_dim=32, start_token=True),
            gaussians.sample(20_000, generator),
            None,
            gaussians,
        ),
        "digits": (
            TARFlow((PIXELS,), 8, 64, 2, 2, conditional="spline", head_dim=32, start_token=True, dropout=0.2),
            digits.levels,
            dequantising(lambda levels: preprocess(levels)[0]),
            None,
        ),
    }
    rows: list[list[object]] = []
    number = arguments.num_samples
    for name, (teacher, data, augment, density) in cases.items():
        trained(teacher, data, arguments.seconds, arguments.seed, augment=augment, **SETTINGS)
        exact = weighted(teacher, density, number, 0) if density is not None else ""
        rate = samples_a_second(lambda: teacher.sample(number, seed=0), number)  # noqa: B023, called at once
        rows.append([name, "TARFlow", count_parameters(teacher), "", exact, f"{rate:.0f}"])
        print(*rows[-1], flush=True)
        size = math.prod(teacher.event_shape)
        student = FlowMap(MLPFlowMap(size, channels=256), (size,))
        pairs = pairs_of(teacher, arguments.num_pairs, seed=arguments.seed + 1)
        trained(student, pairs, arguments.seconds, arguments.seed, Invertible(MeanFlow(Pairs())), **SETTINGS)
        for passes in (1, 2, 4):
            flow = student.with_num_steps(passes)
            back = weighted(flow, teacher, number, 0)
            exact = weighted(flow, density, number, 0) if density is not None else ""
            rate = samples_a_second(lambda: flow.sample(number, seed=0), number)  # noqa: B023, called at once
            rows.append([name, f"map, {passes}", count_parameters(student), back, exact, f"{rate:.0f}"])
            print(*rows[-1], flush=True)
    header = ["data", "flow", "parameters", "to the TARFlow: E[w], ESS", "to the target: E[w], ESS", "samples a second"]
    print("\n" + markdown_table(header, rows))


if __name__ == "__main__":
    main()
