"""What attention that can be differentiated twice costs in training, against torch's kernel alone.

    OMP_NUM_THREADS=1 python benchmarks/attention_training.py --threads 1

Wherever a gradient is recorded, attention goes through an autograd function of ours (`nflib.networks.backends`), since
torch's kernels have no second derivative. A step is log_prob, backward and AdamW of 256 samples; both kinds of
attention take turns in one process, in pairs, by processor time: the ratio is the median over pairs, with its
quartiles. Peak memory is what a step adds to the resident set, in a fresh process each.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from common import argument_parser, in_fresh_process, markdown_table, peak_and_seconds, prepare
from torch import Tensor

from nflib.flows import TARFlow
from nflib.networks import attention, backends
from nflib.networks.cache import causal_mask

BATCH = 256
FLOWS: dict[str, dict[str, Any]] = {
    "8 x 8 images, 64 tokens, default sizes": {"event_shape": (1, 8, 8)},
    "8 x 8 images, 16 tokens, default sizes": {"event_shape": (1, 8, 8), "patch_size": 2},
    "molecule, 20 tokens, 96 channels": {
        "event_shape": (60,),
        "patch_size": 3,
        "channels": 96,
        "head_dim": 24,
        "layers_per_block": 4,
    },
}


def kernel_alone(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, backend: str = "torch"
) -> Tensor:
    """`causal_attention` without the second derivative."""
    mask = causal_mask(query.shape[-2], key.shape[-2], query) if mask is None else mask
    return backends._torch_attention(query, key, value, mask)


ATTENTIONS = {"kernel": kernel_alone, "ours": backends.causal_attention}


class Steps:
    """Training steps of a flow on random data."""

    def __init__(self, name: str):
        torch.manual_seed(0)
        self.flow = TARFlow(**FLOWS[name])
        self.optimizer = torch.optim.AdamW(self.flow.parameters(), 1e-4, fused=True)

    def seconds(self, kind: str, batch: int = BATCH) -> float:
        """Processor time of one step with this attention."""
        attention.causal_attention = ATTENTIONS[kind]
        x = torch.randn(batch, *self.flow.event_shape)
        start = time.process_time()
        loss = -self.flow.log_prob(x).mean()
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        self.optimizer.step()
        return time.process_time() - start


def peak(name: str, kind: str) -> float:
    """MiB that a step adds, in this process."""
    steps = Steps(name)
    steps.seconds(kind, batch=1)
    return peak_and_seconds(lambda: steps.seconds(kind))[0]


def main() -> None:
    """Print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="processes for each peak of memory")
    parser.add_argument("--peak", nargs=2, help="flow and attention of one measurement of memory in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(peak(*arguments.peak))
        return
    prepare(arguments)
    rows = []
    for name in FLOWS:
        steps, seconds = Steps(name), {kind: list[float]() for kind in ATTENTIONS}
        for pair in range(-1, arguments.pairs):
            for kind in list(ATTENTIONS)[:: 1 if pair % 2 else -1]:
                taken = steps.seconds(kind)
                if pair >= 0:
                    seconds[kind].append(taken)
        ratios = [ours / alone for alone, ours in zip(seconds["kernel"], seconds["ours"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        peaks = {
            kind: statistics.median(in_fresh_process("--peak", name, kind)[0] for _ in range(arguments.repeats))
            for kind in ATTENTIONS
        }
        times = [f"{1e3 * statistics.median(values):.0f}" for values in seconds.values()]
        rows.append([name, *times, f"{middle:.3f} ({low:.3f} … {high:.3f})", *(f"{mib:.0f}" for mib in peaks.values())])
        print(*rows[-1], flush=True)
    header = ["flow", "kernel / ms", "ours / ms", "ratio (quartiles)", "kernel / MiB", "ours / MiB"]
    print(f"\nA training step, {arguments.pairs} pairs\n{markdown_table(header, rows)}")


if __name__ == "__main__":
    main()
