"""How fast a video flow makes a clip: token by token, and by sweeps over one or more frames (video-aware Jacobi).

    python benchmarks/video_decoding.py --model runs/video/flow/pipeline --threads 2
    python benchmarks/video_decoding.py --random --threads 1 --processor_time

Timed is the inverse of the whole flow: the deep map, by the decoder named, then the shallow maps inside each frame,
token by token in a batch of all frames ("all maps": they too by sweeps). In all, keys and values are cached. Windows
are of so many frames, and start from the frame before ("latent": from the noise). error: the largest difference from
token by token in any number of x, scaled to unit variance. Times are medians over rounds in which all take turns.
--random: weights as in benchmarks/decoding.py, in place of a model; they are more weakly coupled than trained ones.
--processor_time: of the process, not the wall: what to compare on a machine that others use, with --threads 1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import argument_parser, markdown_table, median_seconds, prepare, with_random_weights
from torch import Tensor

from examples.moving_digits.data import WORDS
from nflib import decoding
from video import STARFlowV
from video.flows.decoding import TOLERANCE, FramesAtOnce
from video.pipeline import Pipeline
from video.pipeline_settings import SETTINGS
from video.text.encoders import TextEncoder, Words

PROMPTS = ("a seven moving up and right, fast", "a three moving down, slowly", "a zero moving left, fast")


def random_weights() -> tuple[STARFlowV, TextEncoder]:
    """The shipped architecture, `with_random_weights`."""
    text = Words(WORDS, 8)
    size: dict[str, Any] = {"text_length": text.length, "text_channels": text.channels, "layer": {"head_dim": 32}}
    return with_random_weights(STARFlowV((16, 4, 8, 8), 2, 128, [1, 1, 1, 4], **size), text(PROMPTS[:1])), text


def load(arguments: argparse.Namespace) -> tuple[STARFlowV, TextEncoder]:
    if arguments.random == (arguments.model is not None):
        raise SystemExit("name a model by --model, or ask for --random weights.")
    if arguments.random:
        return random_weights()
    if (arguments.model / SETTINGS).is_file():
        model = Pipeline.load(arguments.model)
        return model.flow, model.text
    return STARFlowV.from_pretrained(arguments.model).eval(), Words(WORDS, 8)  # a checkpoint of training


def decoders(length: int) -> dict[str, Any]:
    previous = decoding.PreviousFrame(length)

    def window(frames: float, guess: Any = previous) -> decoding.GaussSeidelJacobi:
        return decoding.GaussSeidelJacobi(int(frames * length), TOLERANCE, initial_guess=guess)

    return {
        "token by token": decoding.Sequential(),
        "1/2 frame": Deep(window(0.5)),
        "1 frame": Deep(window(1)),
        "1 frame, latent": Deep(window(1, "latent")),
        "2 frames": Deep(window(2)),
        "3 frames": Deep(window(3)),
        "4 frames": Deep(window(4)),
        "6 frames": Deep(window(6)),
        "all frames": Deep(decoding.Jacobi(TOLERANCE, initial_guess=previous)),
        "2 frames, all maps": window(2),
        "default": FramesAtOnce(length),
    }


class Deep:
    """The decoder given, for the map over all frames alone."""

    def __init__(self, decoder: decoding.Decoder):
        self.decoder = decoder

    def __call__(
        self, map: Any, noise: Tensor, encoded_context: Any, prefix: Tensor | None = None
    ) -> decoding.Inversion | tuple[Tensor, Tensor]:
        is_deep = map.network.prefix is not None
        return (self.decoder if is_deep else decoding.Sequential())(map, noise, encoded_context, prefix)


@torch.inference_mode()
def sweep_rows(flow: STARFlowV, context: Tensor, rounds: int, clock: Callable[[], float]) -> list[list[object]]:
    """What a pass of the deep map over n tokens costs, after so many cached ones."""
    deep, length = flow._transform.deep, flow._transform.frame_length
    total = flow._transform.max_frames * length
    u = torch.randn(1, total, deep.token_size)
    encoded = deep.encode_context(context[:1])
    cache = deep.new_cache(1, total, encoded)
    deep.conditionals(u, encoded, cache)
    rows: list[list[object]] = []
    for start in (length, total // 2, total - length):
        sizes = [n for n in (1, length // 2, length, 2 * length, 4 * length) if n and start + n <= total]
        inputs = {str(n): (u, encoded, cache, start, start + n) for n in sizes}
        calls = {name: partial(deep.conditionals, *taken) for name, taken in inputs.items()}
        for size, taken in median_seconds(calls, 10 * rounds, clock).items():
            rows.append([start, size, f"{1e3 * taken:.2f}"])
    return rows


@torch.no_grad()
def compare(
    flow: STARFlowV, text: TextEncoder, batch: int, arguments: argparse.Namespace, clock: Callable[[], float]
) -> list[list[object]]:
    """The rows of one batch size."""
    length, size = flow._transform.frame_length, flow._transform.deep.token_size
    num_frames = flow._transform.max_frames
    known = decoders(length)
    chosen = {name: known[name] for name in arguments.decoders or known}
    context = text([PROMPTS[row % len(PROMPTS)] for row in range(batch)])
    generator = torch.Generator().manual_seed(arguments.seed)
    draws = [torch.randn(batch, num_frames * length, size, generator=generator) for _ in range(arguments.clips)]
    calls = {
        name: (lambda decoder=decoder: [flow.decode(z, context, decoding=decoder) for z in draws])
        for name, decoder in chosen.items()
    }
    exact = torch.cat([flow.decode(z, context) for z in draws])
    seconds = median_seconds(calls, arguments.rounds, clock)
    rows: list[list[object]] = []
    for name, call in calls.items():
        with decoding.report() as report:
            x = torch.cat(call())
        deep = [block for block in report.blocks if block.num_tokens > length]
        sweeps = sum(block.sweeps for block in deep) / (len(deep) * num_frames)
        tokens = sum(block.tokens_computed for block in deep) / sum(block.num_tokens for block in deep)
        error = ((x - exact).abs().amax() / exact.std()).item()
        taken = seconds[name] / arguments.clips
        ratio = seconds["token by token"] / seconds[name]
        rows.append(
            [batch, name, f"{1e3 * taken:.1f}", f"{ratio:.2f}", f"{sweeps:.1f}", f"{tokens:.1f}", f"{error:.0e}"]
        )
    return rows


def main() -> None:
    """Print a table of passes, then one of decoders for each batch size."""
    parser = argument_parser(__doc__)
    parser.add_argument("--model", type=Path, help="folder of a video model, or of its flow")
    parser.add_argument("--random", action="store_true", help="random weights")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--clips", type=int, default=3, help="draws of noise that a time is the mean of")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decoders", nargs="+", help='some of them, "token by token" among them')
    parser.add_argument("--processor_time", action="store_true")
    arguments = parser.parse_args()
    prepare(arguments)
    clock = time.process_time if arguments.processor_time else time.perf_counter
    flow, text = load(arguments)
    print(
        markdown_table(["cached tokens", "tokens", "ms"], sweep_rows(flow, text(PROMPTS[:1]), arguments.rounds, clock))
    )
    header = ["batch", "decoder", "ms a batch", "times faster", "sweeps a frame", "passes a token", "error"]
    for batch in arguments.batch:
        print("\n" + markdown_table(header, compare(flow, text, batch, arguments, clock)), flush=True)


if __name__ == "__main__":
    main()
