"""Memory and time of a training step with and without activation checkpointing, each in fresh processes.

    OMP_NUM_THREADS=1 python benchmarks/checkpointing.py --threads 1

A TARFlow of images (3, 32, 32): 4 blocks of 6 layers, 256 channels, batch 32, float32. Memory is what the resident set
gains at its peak over its size before the step, gradients allocated beforehand, and the allocator told to give back at
once what is free. Time is that of the processor; both are medians over --repeats.
"""

from __future__ import annotations

import statistics

import torch
from common import argument_parser, in_fresh_process, markdown_table, peak_and_seconds, prepare

from nflib.flows import TARFlow
from nflib.networks import checkpoint_activations

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measure(is_checkpointed: bool) -> None:
    """Print MiB and seconds of one step in this process."""
    torch.manual_seed(0)
    flow = TARFlow((3, 32, 32), patch_size=4, channels=256, num_blocks=4, layers_per_block=6, head_dim=64)
    images = torch.randn(32, 3, 32, 32)
    flow.log_prob(images[:1]).sum().backward()

    def step() -> None:
        with checkpoint_activations(flow, enabled=is_checkpointed):
            flow.log_prob(images).sum().backward()

    print(*peak_and_seconds(step))


def main() -> None:
    """Print one row without, and one with."""
    parser = argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--one", choices=["with", "without"], help="measure in this process, and print the numbers alone"
    )
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(arguments.threads)
        measure(arguments.one == "with")
        return
    prepare(arguments)
    medians = {}
    for name in ("without", "with"):
        found = [in_fresh_process("--one", name, **GIVE_BACK) for _ in range(arguments.repeats)]
        medians[name] = [statistics.median(column) for column in zip(*found, strict=True)]
    rows = [
        [
            name,
            *(f"{value:.4g}" for value in values),
            *(f"{a / b:.2f}" for a, b in zip(values, medians["without"], strict=True)),
        ]
        for name, values in medians.items()
    ]
    print(markdown_table(["checkpointing", "MiB", "s", "of the memory", "of the time"], rows))


if __name__ == "__main__":
    main()
