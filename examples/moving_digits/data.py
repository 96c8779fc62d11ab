"""Moving digits: clips of handwritten digits that bounce off walls, with prompts in plain words."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from nflib.random import derived_generator

SIZE, DIGIT = 32, 14
ROOM = SIZE - DIGIT  # positions of a digit's corner are 0 … ROOM
# What is left of a digit's light one frame later. It gives time an arrow: without it, a clip of a bouncing digit played
# backwards is as good a clip, and no likelihood could tell the two apart.
AFTERGLOW = 0.4
# So many steps of a clip's beginning meet no wall: the direction of its prompt can be seen.
STRAIGHT = 5
# Share of clips that are cut out of a longer motion: what continuing a clip takes.
CUTS = 0.3
LONGEST = 512  # frames of motion before a cut
# Of a drifted clip: the largest share of another digit in what it shows, and for how many of its frames at most.
ASTRAY, DRIFTED_FRAMES = 0.7, 8
# What is said instead of a direction of clips whose first frame is the beginning of a motion, and the others any later.
ON_AND_ON = "on and on"

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = {
    "up": (0, -1),
    "up and right": (1, -1),
    "right": (1, 0),
    "down and right": (1, 1),
    "down": (0, 1),
    "down and left": (-1, 1),
    "left": (-1, 0),
    "up and left": (-1, -1),
}
SPEEDS = {"slowly": 1, "fast": 2}  # pixels a frame, along each axis
WORDS = ("a", "an", *NUMBERS, "moving", "up", "down", "left", "right", "and", "on", *SPEEDS)
# How many of the 1797 samples of handwriting the splits have.
SPLITS = {"train": slice(0, 1100), "validation": slice(1100, 1297), "held_out": slice(1297, None)}


class Clips(NamedTuple):
    """frames: ``(B, T, 1, 32, 32)`` in -1 … 1; the rest ``(B,)``: digits, and numbers of directions and speeds.

    images: the handwriting, ``(B, 14, 14)`` in 0 … 1. is_cut: whether a clip is cut out of a longer motion; its
    direction is then that in which it began long before. is_anchored: whether its first frame is the one that the
    longer motion began with. num_given: how many of its first frames are there to be read, not to be learnt.
    """

    frames: Tensor
    prompts: list[str]
    digits: Tensor
    directions: Tensor
    speeds: Tensor
    is_cut: Tensor
    images: Tensor
    is_anchored: Tensor
    num_given: Tensor


@functools.cache
def handwriting(split: str) -> tuple[Tensor, Tensor]:
    """Samples of scikit-learn's digits ``(N, 14, 14)`` in 0 … 1, enlarged from 8 × 8, and their labels ``(N,)``.

    split: "train", "validation" or "held_out": no two share a sample. Raises ValueError for another.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('moving digits take scikit-learn: pip install "nflib[video]".') from error
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))[SPLITS[split]]
    small = torch.from_numpy(digits.images)[order].float() / 16
    large = interpolate(small.unsqueeze(1), size=(DIGIT, DIGIT), mode="bicubic", align_corners=False).squeeze(1)
    return large.clamp(0, 1), torch.from_numpy(digits.target)[order].long()


def prompt(digit: int, direction: int | None, speed: int | None, *, is_anchored: bool = False) -> str:
    """Such as "a seven moving up and right, fast"; direction None: "moving on"; speed None: "a seven" alone.

    is_anchored: "a seven moving on and on, fast", or, of no speed, "a seven moving on and on", whatever the direction.
    """
    noun = f"{'an' if digit == 8 else 'a'} {NUMBERS[digit]}"
    way = ON_AND_ON if is_anchored else "on" if direction is None else list(DIRECTIONS)[direction]
    if speed is None:
        return f"{noun} moving {way}" if is_anchored else noun
    return f"{noun} moving {way}, {list(SPEEDS)[speed]}"


def velocities(directions: Tensor, speeds: Tensor) -> Tensor:
    """Pixels a frame (x, y), ``(B, 2)``, of numbers of directions and speeds."""
    return torch.tensor(list(DIRECTIONS.values()))[directions] * torch.tensor(list(SPEEDS.values()))[speeds, None]


def bounced(start: Tensor, velocity: Tensor, steps: Tensor) -> Tensor:
    """Positions ``(…, T, 2)`` in 0 … ROOM after `steps` ``(T,)`` from start ``(…, 2)``, reflected at the walls."""
    free = start.unsqueeze(-2) + velocity.unsqueeze(-2) * steps.unsqueeze(-1)
    return ROOM - (free.remainder(2 * ROOM) - ROOM).abs()


def render(digits: Tensor, positions: Tensor, afterglow: float = AFTERGLOW) -> Tensor:
    """Frames ``(B, T, 1, 32, 32)`` in -1 … 1 of digits ``(B, 1 or T, 14, 14)`` at integers (x, y), ``(B, T, 2)``."""
    frames = digits.new_zeros(*positions.shape[:2], SIZE, SIZE)
    offsets = torch.arange(DIGIT)
    batch, time = torch.meshgrid(*(torch.arange(n) for n in positions.shape[:2]), indexing="ij")
    columns, rows = (positions[..., axis, None] + offsets for axis in (0, 1))
    where = (batch[..., None, None], time[..., None, None], rows[..., :, None], columns[..., None, :])
    frames[where] = digits.expand(-1, positions.shape[1], -1, -1)
    for now in range(1, positions.shape[1]):
        frames[:, now] = torch.maximum(frames[:, now], afterglow * frames[:, now - 1])
    return 2 * frames.unsqueeze(2) - 1


def light(clips: Tensor) -> Tensor:
    """Intensities ``(B, T, H, W)`` in 0 … 1 of clips ``(B, T, 1, H, W)`` in -1 … 1."""
    return (clips.squeeze(2).clamp(-1, 1) + 1) / 2


def light_centres(clips: Tensor) -> Tensor:
    """The centre of light (x, y) of frames ``(B, T, 1, H, W)``, in pixels, without afterglow: ``(B, T, 2)``."""
    weight = sharp_light(light(clips)) + 1e-8
    total = weight.sum((2, 3))
    rows, columns = (torch.arange(n, dtype=weight.dtype) for n in weight.shape[2:])
    return torch.stack([weight.sum(2) @ columns, weight.sum(3) @ rows], dim=-1) / total.unsqueeze(-1)


def sharp_light(intensities: Tensor) -> Tensor:
    """What of intensities is above what an afterglow reaches."""
    return (intensities - AFTERGLOW - 0.05).clamp(min=0)


class MovingDigits:
    """Clips of one split of the handwriting, each made from the seed and its number alone.

    A clip is a beginning, dark before its first frame and straight for the first `STRAIGHT` steps, or, of a share
    `cuts`, cut out of a longer motion at any time; the prompt of the latter has no direction, and at times the digit
    alone. Of a share `drifted` of the cuts the first frames, up to `DRIFTED_FRAMES`, show another digit mixed into the
    right one, to which the clip then comes back: as the frames of a model that goes on from its own, whose digits go
    astray. A share `anchored` of the cuts have in the place of their first frame the one that the motion
    began with, which tells to what handwriting a clip comes back; what they show of another digit, and how far they
    are from their first frame, is not to be learnt. Raises ValueError for sizes that make no sense.
    """

    def __init__(
        self,
        split: str = "train",
        num_clips: int = 100_000,
        num_frames: int = 16,
        *,
        cuts: float = CUTS,
        drifted: float = 0.0,
        anchored: float = 0.0,
        seed: int = 0,
    ):
        if num_clips < 1 or num_frames < 1 or not all(0 <= share <= 1 for share in (cuts, drifted, anchored)):
            raise ValueError(
                f"there are no {num_clips} clips of {num_frames} frames with a share {cuts} of cuts, {drifted} of "
                f"these drifted and {anchored} anchored; give positive numbers and shares in 0 … 1."
            )
        self.images, self.labels = handwriting(split)
        self.num_clips = num_clips
        self.num_frames = num_frames
        self.cuts = cuts
        self.drifted = drifted
        self.anchored = anchored
        self.seed = seed

    def __len__(self) -> int:
        return self.num_clips

    def clips(self, indices: Tensor | None = None) -> Clips:
        """The clips of these numbers (None: all of them)."""
        indices = torch.arange(len(self)) if indices is None else indices
        draws = torch.stack([self._draw(int(index)) for index in indices])
        sample = (draws[:, 0] * len(self.images)).long()
        direction, speed = (draws[:, 1] * len(DIRECTIONS)).long(), (draws[:, 2] * len(SPEEDS)).long()
        signs = torch.tensor(list(DIRECTIONS.values()))[direction]
        velocity = velocities(direction, speed)
        free = ROOM - STRAIGHT * velocity.abs()
        start = (draws[:, 3:5] * (free + 1)).long() + torch.where(signs < 0, ROOM - free, 0)
        is_cut = draws[:, 5] < self.cuts
        # A frame of what was before a cut is enough: light that is two frames old cannot be told from its afterglow.
        first = torch.where(is_cut, (draws[:, 6] * LONGEST).long() + BEFORE, 0)
        steps = first[:, None] + torch.arange(-BEFORE, self.num_frames)
        positions = bounced(start[:, None], velocity[:, None], steps[..., None]).squeeze(2)
        images = self.images[sample].unsqueeze(1)
        is_anchored = is_cut & (draws[:, 12] < self.anchored)
        # Of an anchored clip, one frame is the anchor and one at least tells how the digit moves.
        num_astray = 1 + (draws[:, 11] * DRIFTED_FRAMES).long() + is_anchored
        drifting = self._with_drift(images, draws[:, 8:11], num_astray, is_anchored)
        cut = render(drifting, positions)[:, BEFORE:]
        begun = render(images, positions[:, BEFORE:])
        # What a motion begins with may have an afterglow: a clip that is to be continued may be a cut itself.
        glow = torch.arange(-BEFORE, 1) * (draws[:, 13:14] < 0.5)
        anchor = render(images, bounced(start[:, None], velocity[:, None], glow[..., None]).squeeze(2))[:, -1]
        frames = torch.where(is_cut.view(-1, 1, 1, 1, 1), cut, begun)
        frames[:, 0] = torch.where(is_anchored.view(-1, 1, 1, 1), anchor, frames[:, 0])
        digits = self.labels[sample]
        prompts = []
        is_bare = is_cut & (draws[:, 7] < 0.3)
        for row in range(len(indices)):
            way = None if is_cut[row] else int(direction[row])
            pace = None if is_bare[row] else int(speed[row])
            prompts.append(prompt(int(digits[row]), way, pace, is_anchored=bool(is_anchored[row])))
        num_given = torch.where(is_anchored, num_astray, 0).clamp(max=self.num_frames - 1)
        return Clips(frames, prompts, digits, direction, speed, is_cut, self.images[sample], is_anchored, num_given)

    def _with_drift(self, images: Tensor, draws: Tensor, num_astray: Tensor, is_anchored: Tensor) -> Tensor:
        """Images ``(B, 1, 14, 14)`` in each frame of a cut, those before it included, ``(B, BEFORE + T, 14, 14)``."""
        if not self.drifted:
            return images
        other = self.images[(draws[:, 1] * len(self.images)).long()].unsqueeze(1)
        largest = torch.where(is_anchored, 1.0, ASTRAY)  # an anchor tells what is right even where nothing else does
        share = torch.where(draws[:, 0] < self.drifted, largest * draws[:, 2], 0.0).to(images)
        is_astray = torch.arange(-BEFORE, self.num_frames) < num_astray[:, None]
        return torch.lerp(images, other, (is_astray * share[:, None])[..., None, None])

    def _draw(self, index: int) -> Tensor:
        return torch.rand(14, generator=derived_generator(self.seed, index), dtype=torch.float64)


BEFORE = 6  # frames after which an afterglow is below what 8 bits can show: 0.4^6 = 1/244
