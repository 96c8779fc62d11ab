"""How fast one forward pass of `log_prob` is, against the matrix-multiplication rate of the machine in the same run.

    python benchmarks/likelihood.py

A flow of T = 256 tokens, 8 blocks of 4 layers, 256 channels. Operations are those of the linear maps (2 a weight and
token) and of causal attention (the half of T x T that is not masked); norms, GELUs and all else count as nothing.
The matrix multiplications are square, 2048 x 2048; each figure is the median over rounds in which all take turns.
bf16 is `torch.autocast` around log_prob: weights stay float32, log-densities are accumulated in float32.
"""

from functools import partial

import torch
from common import (
    argument_parser,
    count_parameters,
    markdown_table,
    median_seconds,
    operations,
    prepare,
    random_tarflow,
)

from nflib.networks import CausalTransformer

TOKENS, CHANNELS, BLOCKS, LAYERS, SQUARE = 256, 256, 8, 4, 2048


def main() -> None:
    """Print the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    prepare(arguments)
    flow = random_tarflow((3, 64, 64), 4, CHANNELS, BLOCKS, LAYERS)
    per_event = sum(operations(part, TOKENS - 1) for part in flow.modules() if isinstance(part, CausalTransformer))
    inputs = {batch: torch.randn(batch, 3, 64, 64) for batch in arguments.batch}

    def log_prob(batch: int, bf16: bool) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return flow.log_prob(inputs[batch])

    square = torch.randn(SQUARE, SQUARE)
    half = square.bfloat16()
    functions = {"matmul fp32": partial(torch.mm, square, square), "matmul bf16": partial(torch.mm, half, half)}
    for batch in arguments.batch:
        functions[f"{batch} fp32"] = partial(log_prob, batch, False)
        functions[f"{batch} bf16"] = partial(log_prob, batch, True)
    seconds = median_seconds(functions, arguments.rounds)
    rate = {kind: 2.0 * SQUARE**3 / seconds[f"matmul {kind}"] / 1e9 for kind in ("fp32", "bf16")}
    rows = []
    for batch in arguments.batch:
        exact, rounded = log_prob(batch, False), log_prob(batch, True)
        error = (rounded - exact).abs().max().item()
        for kind in ("fp32", "bf16"):
            achieved = batch * per_event / seconds[f"{batch} {kind}"] / 1e9
            rows.append(
                [
                    batch,
                    kind,
                    f"{1e3 * seconds[f'{batch} {kind}']:.0f}",
                    f"{achieved:.0f}",
                    f"{rate[kind]:.0f}",
                    f"{100 * achieved / rate[kind]:.0f} %",
                    f"{seconds[f'{batch} fp32'] / seconds[f'{batch} {kind}']:.2f}",
                    "–" if kind == "fp32" else f"{error:.2g} of {exact.abs().mean().item():.0f} nats",
                ]
            )
    print(f"log_prob of {count_parameters(flow) / 1e6:.0f} million parameters, T = {TOKENS}")
    header = ["batch", "precision", "ms", "GFLOP/s", "matmul GFLOP/s", "share", "times fp32", "largest error"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
