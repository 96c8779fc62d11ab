"""Memory and time of gradients through samples: `rsample` and backward against one pass of log_prob and backward.

    OMP_NUM_THREADS=1 python benchmarks/rsample_memory.py --threads 1

A flow of T = 256 tokens, 4 blocks of 4 layers, 128 channels, batch 16, float32. Decoding is a loop, and so is the
solution of ``J^T w = v`` by which the gradient is carried back (transposed sweeps): the more the tokens depend on each
other, the more of them. "Weights" is the standard deviation of what is added to every weight of a new flow, whose
tokens depend on nothing. Peak memory is what the resident set gains over its size after a warm-up, in a fresh process
each; gradients are allocated beforehand. Time is that of the processor.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from common import argument_parser, in_fresh_process, markdown_table, peak_and_seconds, prepare
from torch import Tensor

from nflib.flows import TARFlow
from nflib.transforms import implicit

TOKENS, BATCH = 256, 16


def measure(what: str, weights: float, seed: int) -> tuple[float, float, int]:
    """Peak memory in MiB, processor time in s, and transposed sweeps of all blocks, in this process."""
    torch.manual_seed(seed)
    flow = TARFlow((TOKENS,), 1, channels=128, num_blocks=4, layers_per_block=4)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=weights)
            parameter.grad = torch.zeros_like(parameter)
    sweeps, solve = [0], implicit.solve_transposed

    def counting(transposed: Callable[[Tensor], Tensor], diagonal: Tensor, cotangent: Tensor) -> Tensor:
        def counted(w: Tensor) -> Tensor:
            sweeps[0] += 1
            return transposed(w)

        return solve(counted, diagonal, cotangent)

    implicit.solve_transposed = counting

    def run(batch: int) -> None:
        out = flow.rsample(batch) if what == "rsample" else flow.log_prob(torch.randn(batch, TOKENS))
        out.sum().backward()

    run(1)
    sweeps[0] = 0
    return *peak_and_seconds(lambda: run(BATCH)), sweeps[0]


def main() -> None:
    """Print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--weights", nargs="+", default=["0.003", "0.01", "0.05"], help="spread of the weights")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", nargs=3, help="what, weights and seed, of one measurement in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        what, weights, seed = arguments.measure
        print(*measure(what, float(weights), int(seed)))
        return
    prepare(arguments)
    rows = []
    for weights in arguments.weights:
        runs: dict[str, list[list[float]]] = {"log_prob": [], "rsample": []}
        for repeat in range(arguments.repeats):
            for what in runs:
                runs[what].append(in_fresh_process("--measure", what, weights, str(arguments.seed + repeat)))
        (peak, seconds, _), (sampled, longer, sweeps) = (
            [statistics.median(column) for column in zip(*columns, strict=True)] for columns in runs.values()
        )
        ratios = sorted(b[0] / a[0] for a, b in zip(runs["log_prob"], runs["rsample"], strict=True))
        memory_ratio = f"{sampled / peak:.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})"
        rows.append(
            [weights, f"{sweeps / 4:.1f}", f"{peak:.0f}", f"{sampled:.0f}", memory_ratio, f"{longer / seconds:.1f}"]
        )
        print(*rows[-1], flush=True)
    header = ["weights", "sweeps a block", "log_prob / MiB", "rsample / MiB", "ratio (range)", "ratio of times"]
    print(f"\nForward and backward, medians of {arguments.repeats} fresh processes\n{markdown_table(header, rows)}")


if __name__ == "__main__":
    main()
