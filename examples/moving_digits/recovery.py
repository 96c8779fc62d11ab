"""Clips that a model begins and the truth ends: what roll-outs have to learn from, against exposure bias."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from examples.moving_digits.data import (
    BEFORE,
    DIGIT,
    ROOM,
    Clips,
    MovingDigits,
    bounced,
    handwriting,
    light,
    light_centres,
    render,
    sharp_light,
    velocities,
)
from nflib.io import complete_file
from video.drawing import Window
from video.pipeline import Pipeline

NAMES = ("inputs", "context", "num_given", "is_anchored")
log = logging.getLogger(__name__)

# By how many pixels, in the mean, the frames that a model drew may differ from the motion that is fitted to them.
LARGEST_MISFIT = 1.0


@torch.no_grad()
def recovery(
    output: Path,
    model: Path | None = None,
    clips: int = 1000,
    windows: int = 4,
    guidance: float = 0.0,
    seed: int = 0,
    batch_size: int = 200,
) -> dict[str, Tensor]:
    """Make clips that a model begins, on roll-outs from true first frames, and that end as they should.

    A clip's first frames, a quarter to three quarters of it, are the noisy latents that the model drew, from errors of
    its own in all windows before; the others are the latents, without noise, of what should follow: the true digit,
    moving on from where the model drew it last. Where a window does not show the true first frame, it is, of all
    handwriting of the prompt's digit, the one nearest to what the model drew. Windows whose digit does not move as
    digits do are left out. Training on what follows alone is DAgger (arXiv 1011.0686) for a flow;
    benchmarks/RESULTS.md has what it does to roll-outs, which is not only good.

    Args:
        output: a .safetensors file, which train takes by --recovery.
        model: folder of a trained model; default: the shipped one.
        clips: how many are rolled out.
        windows: how many of each, every one of which begins a clip.
        guidance: weight of classifier-free guidance; 0 for none.
        seed: of the random numbers.
        batch_size: clips rolled out at once.

    Returns:
        "inputs" ``(N, T, c, h, w)``, their "context", "num_given" ``(N,)``: how many frames the model drew, which are
        not to be learnt, and "is_anchored" ``(N,)``: whether the first one is the clip's.

    Raises:
        ValueError: numbers below 1, or an output that is a folder.
    """
    if clips < 1 or windows < 1:
        raise ValueError(f"recovery clips take one clip and one window at least, got {clips} and {windows}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be a positive number, got {batch_size}.")
    if output.is_dir():
        raise ValueError(f"{output} is a folder: name a .safetensors file for the clips.")
    pipeline = Pipeline.load(model)
    half = pipeline.window // 2
    num_frames = pipeline.window + (windows - 1) * half
    beginnings = MovingDigits("train", clips, 1, cuts=0.0, seed=seed)
    found = []
    for rows in tqdm(torch.arange(clips).split(batch_size), "rolling out", disable=clips <= batch_size):
        begun = beginnings.clips(rows)
        drawn = pipeline.draw(
            begun.prompts, num_frames, begun.frames, guidance=guidance, overlap=half, seed=seed + int(rows[0])
        )
        found += [_recovery(pipeline, window, begun, first) for first, window in enumerate(drawn.windows)]
    made = {name: torch.cat([part[name] for part in found]) for name in NAMES}
    with complete_file(output) as temporary:
        save_file({name: part.contiguous() for name, part in made.items()}, temporary)
    log.info("%d clips written to %s", len(made["inputs"]), output)
    return made


def _recovery(model: Pipeline, window: Window, clips: Clips, first: int) -> dict[str, Tensor]:
    """The clips of one window of a roll-out of `clips`; first: its number, from which numbers of given frames go on."""
    counts = range(model.window // 4, 3 * model.window // 4 + 1)
    num_given = torch.tensor(counts)[(torch.arange(len(window.latents)) + first) % len(counts)]
    inputs, fits = window.latents.clone(), torch.zeros(len(num_given), dtype=torch.bool)
    velocity = velocities(clips.directions, clips.speeds)
    for given in counts:
        rows = (num_given == given).nonzero().squeeze(1)
        if not len(rows):
            continue
        frames = model.latents.decode(window.latents[rows, int(window.is_anchored) : given])
        images = clips.images[rows]
        position, way, misfit = fitted_motion(light_centres(frames), images, velocity[rows])
        if first and not window.is_anchored:
            images, position = nearest_handwriting(light(frames[:, -1:]).squeeze(1), position, clips.digits[rows])
        steps = torch.arange(-BEFORE, model.window - given) + 1
        true = render(images.unsqueeze(1), bounced(position, way, steps))[:, BEFORE:]
        inputs[rows, given:] = model.latents.encode(true)
        fits[rows] = misfit <= LARGEST_MISFIT
    is_anchored = torch.full((int(fits.sum()),), window.is_anchored)
    return {
        "inputs": inputs[fits],
        "context": window.context[fits],
        "num_given": num_given[fits],
        "is_anchored": is_anchored,
    }


def fitted_motion(centres: Tensor, images: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The motion of a digit that comes nearest to centres of light ``(B, T, 2)``: where it is in the last frame, how it
    moves then, both ``(B, 2)``, and its mean distance from the centres, ``(B,)``, in pixels, but for what is the same
    in all frames: a digit of another shape may move as it should.

    images: of the digits ``(B, 14, 14)``. velocity: theirs ``(B, 2)``, but for its signs.
    """
    middle = light_centres(2 * images[:, None, None] - 1)
    signs = torch.cartesian_prod(torch.tensor([1, -1]), torch.tensor([1, -1]))
    offsets = torch.cartesian_prod(torch.arange(-2, 3), torch.arange(-2, 3))
    nearest = (centres[:, -1:] - middle).round().long()
    positions = (nearest + offsets).clamp(0, ROOM).repeat(1, len(signs), 1)
    ways = velocity[:, None] * signs.repeat_interleave(len(offsets), 0)
    steps = torch.arange(1 - centres.shape[1], 1)
    residuals = bounced(positions, ways, steps) + middle[:, None] - centres[:, None]
    best = residuals.norm(dim=-1).mean(-1).argmin(1)
    rows = torch.arange(len(best))
    residual = residuals[rows, best]
    misfit = (residual - residual.mean(1, keepdim=True)).norm(dim=-1).mean(-1)
    return positions[rows, best], ways[rows, best], misfit


def nearest_handwriting(frames: Tensor, positions: Tensor, digits: Tensor) -> tuple[Tensor, Tensor]:
    """The training handwriting of `digits` ``(B,)`` that is nearest to what frames ``(B, H, W)`` in 0 … 1 show about
    `positions` ``(B, 2)``: the images ``(B, 14, 14)``, and where they are, ``(B, 2)``.
    """
    images, labels = handwriting("train")
    sharp = sharp_light(images).flatten(1)
    offsets = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2))
    found, places = [], []
    for frame, position, digit in zip(frames, positions, digits, strict=True):
        corners = (position + offsets).clamp(0, ROOM)
        seen = torch.stack([frame[y : y + DIGIT, x : x + DIGIT] for x, y in corners.tolist()])
        known = (labels == digit).nonzero().squeeze(1)
        distances = torch.cdist(sharp_light(seen).flatten(1), sharp[known])
        corner, image = divmod(int(distances.argmin()), len(known))
        found.append(images[known[image]])
        places.append(corners[corner])
    return torch.stack(found), torch.stack(places)


def load_recovery_clips(paths: Sequence[str | os.PathLike[str]]) -> dict[str, Tensor]:
    """The recovery clips of all files; raises FileNotFoundError or ValueError for one that holds none."""
    parts = []
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"there are no recovery clips at {path}; make them by python -m examples.moving_digits recovery."
            )
        try:
            parts.append(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no file of recovery clips ({error}); make it again.") from error
        if set(parts[-1]) != set(NAMES):
            raise ValueError(f"{path} holds {', '.join(sorted(parts[-1]))}, which are no recovery clips.")
    return {name: torch.cat([part[name] for part in parts]) for name in NAMES}
