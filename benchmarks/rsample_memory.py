"""Peak memory and time of gradients through samples, beside one forward and backward pass of log_prob.

    python benchmarks/rsample_memory.py --threads 1

A TARFlow of 256 tokens with random weights: the stronger these are, the more sweeps solve for the gradient. Each number
is that of a process of its own: the highest resident memory, less what it was before the call.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from multiprocessing.connection import Connection

import torch
from common import argument_parser, markdown_table, prepare
from torch import Tensor

import nflib.transforms.implicit as implicit
from nflib.flows import TARFlow

TOKENS, BATCH = 256, 16


def make(strength: float) -> TARFlow:
    torch.manual_seed(0)
    flow = TARFlow((TOKENS,), channels=128, num_blocks=4, layers_per_block=4)
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if "proj_out" in name:
                parameter += strength * torch.randn_like(parameter)
    return flow


def log_prob(flow: TARFlow) -> None:
    flow.log_prob(torch.randn(BATCH, TOKENS)).sum().backward()


def rsample(flow: TARFlow) -> None:
    flow.rsample(BATCH, seed=0).square().sum().backward()


def measure(call: str, strength: float, threads: int, out: Connection) -> None:
    """Send the memory in MiB, the seconds, and how many sweeps each map's gradient took."""
    torch.set_num_threads(threads)
    flow, sweeps = make(strength), []
    solve = implicit.solve_transposed

    def counted(transposed, diagonal: Tensor, cotangent: Tensor) -> Tensor:
        number = [0]

        def once(w: Tensor) -> Tensor:
            number[0] += 1
            return transposed(w)

        solution = solve(once, diagonal, cotangent)
        sweeps.append(number[0])
        return solution

    implicit.solve_transposed = counted
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    globals()[call](flow)
    seconds = time.perf_counter() - start
    out.send(((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, seconds, sweeps))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.01, 0.1, 0.3], help="of the output weights")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    prepare(options)
    context = multiprocessing.get_context("spawn")
    rows: list[list[object]] = []
    for strength in options.strengths:
        found: dict[str, list[tuple[float, float, list[int]]]] = {"log_prob": [], "rsample": []}
        for _ in range(options.rounds):
            for call, results in found.items():
                receiver, sender = context.Pipe(duplex=False)
                worker = context.Process(target=measure, args=(call, strength, options.threads, sender))
                worker.start()
                results.append(receiver.recv())
                worker.join()
        memory, seconds = (
            {call: statistics.median(result[column] for result in results) for call, results in found.items()}
            for column in (0, 1)
        )
        sweeps = found["rsample"][0][2]
        rows.append(
            [
                strength,
                f"{min(sweeps)} to {max(sweeps)}",
                f"{memory['log_prob']:.0f}",
                f"{memory['rsample']:.0f}",
                f"{memory['rsample'] / memory['log_prob']:.2f}",
                f"{seconds['rsample'] / seconds['log_prob']:.1f}",
            ]
        )
    header = ["output weights", "sweeps a map", "log_prob, MiB", "rsample, MiB", "ratio", "ratio of times"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
