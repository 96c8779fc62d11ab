"""Clips that continue given frames, and clips longer than a flow's positions: window after window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from nflib.decoding import Decoder
from nflib.flows import Flow
from nflib.random import given_generator
from video.flows.deep_shallow import DeepShallow
from video.flows.patches import FrameNoise, VideoPatches


class Span(NamedTuple):
    """A window of a clip, by the numbers of its latent frames.

    Args:
        first: its first frame.
        done: the first of its frames that is not known yet.
        stop: the frame after its last one.
        is_anchored: whether the clip's first frame stands in the place of its own first one.
    """

    first: int
    done: int
    stop: int
    is_anchored: bool = False

    @property
    def num_frames(self) -> int:
        return self.stop - self.first

    @property
    def num_known(self) -> int:
        return self.done - self.first

    def of(self, frames: Tensor) -> Tensor:
        """The window's frames out of those of a clip ``(B, T, …)``, as far as there are any."""
        own = frames[:, self.first : self.stop]
        return torch.cat([frames[:, :1], own[:, 1:]], dim=1) if self.is_anchored else own


def spans(
    num_frames: int, num_known: int, window: int, overlap: int | None = None, *, is_anchored: bool = False
) -> Iterator[Span]:
    """The windows of a clip whose first frames are known, one after the other.

    Args:
        num_frames: of the clip.
        num_known: how many of these, the first ones, are known.
        window: frames of a window.
        overlap: known frames of every window but the first (default: half of it). 0 gives windows that know nothing.
        is_anchored: whether later windows have the clip's first frame in the place of the oldest that they know; a
            single known frame has to be the last one, which tells where things are.

    Raises:
        ValueError: an overlap that leaves no new frame.

    >>> [span[:3] for span in spans(9, 1, 4)]
    [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 9)]
    """
    overlap = window // 2 if overlap is None else overlap
    if not 0 <= overlap < window:
        raise ValueError(f"overlap must lie in 0 … {window - 1}, fewer frames than a window's, got {overlap!r}.")

    def following() -> Iterator[Span]:
        done = num_known
        while done < num_frames:
            first = 0 if done < window else done - overlap
            stop = min(first + window, num_frames)
            yield Span(first, done, stop, is_anchored and first > 0 and done - first > 1)
            done = stop

    return following()


class Recent:
    """What the windows of a growing clip read: its last frames, and its first one.

    Args:
        start: the frames ``(B, T, …)`` that there are.
        limit: how many of the last ones are kept.
    """

    def __init__(self, start: Tensor, limit: int):
        self.limit = limit
        self.stop = start.shape[1]
        self._first, self._last = start[:, :1], start[:, -limit:]

    def add(self, new: Tensor) -> None:
        self._first = torch.cat([self._first, new[:, :1]], dim=1)[:, :1]
        self._last = torch.cat([self._last, new], dim=1)[:, -self.limit :]
        self.stop += new.shape[1]

    def of(self, span: Span) -> Tensor:
        """What there is of a window."""
        offset = self.stop - self._last.shape[1]
        own = self._last[:, span.first - offset : span.stop - offset]
        return torch.cat([self._first, own[:, 1:]], dim=1) if span.is_anchored else own


def rolling(
    known: Tensor, windows: Iterable[Span], make: Callable[[Span, Tensor], Tensor], window: int
) -> Iterator[Tensor]:
    """The new frames of one window after the other; no more than the last window, and the first frame, is kept.

    Args:
        known: frames ``(B, n, …)`` that there are.
        windows: of `spans`.
        make: (window, its known frames) -> all frames of the window.
        window: frames of a window.
    """
    recent = Recent(known, window)
    for span in windows:
        new = make(span, recent.of(span))[:, span.num_known :]
        recent.add(new)
        yield new


@torch.no_grad()
def generate(
    flow: Flow,
    num_frames: int,
    context: Tensor | None = None,
    given: Tensor | None = None,
    *,
    window: int | None = None,
    overlap: int | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    decoding: Decoder | None = None,
) -> Tensor:
    """Sample clips of any length, window after window, which begin with the given frames, if any.

    Args:
        flow: a `STARFlowV`, or what its `guided` returns.
        num_frames: of the clips, those given included.
        context: one row a clip; None for a flow without text.
        given: the first frames ``(B or 1, n, C, H, W)``, which come back unchanged, in the flow's dtype: one for image
            to video, more to continue a clip. None: all frames are generated; B is then 1 without a context.
        window: as for `decode`.
        overlap: as for `decode`.
        generator: as for `Flow.sample`.
        seed: as for `Flow.sample`.
        decoding: as for `decode`.

    Returns:
        ``(B, num_frames, C, H, W)``.

    Raises:
        ValueError: settings or shapes that do not fit, float64 where the flow has float32, or a flow of images.

    >>> import torch
    >>> from video import STARFlowV, rollout
    >>> flow = STARFlowV((3, 3, 8, 8), channels=64, layers_per_block=[1, 1], text_length=5, text_channels=16)
    >>> rollout.generate(flow, 7, torch.zeros(2, 5, 16), torch.zeros(1, 1, 3, 8, 8), seed=0).shape
    torch.Size([2, 7, 3, 8, 8])
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be a positive number, got {num_frames!r}.")
    generator = given_generator(generator, seed)
    rows = len(context) if context is not None else len(given) if given is not None else 1
    noise = new_noise(flow, rows, num_frames, generator)
    return decode(flow, noise, context, given, window=window, overlap=overlap, decoding=decoding)


def new_noise(flow: Flow, rows: int, num_frames: int, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise for `decode`: tokens ``(rows, num_frames * frame_length, C)``.

    Args:
        flow: as for `generate`.
        rows: how many clips.
        num_frames: of each.
        generator: of the random numbers (default: torch's own).

    Raises:
        ValueError: another flow.
    """
    _transform(flow)
    base: FrameNoise = flow._distribution  # type: ignore[assignment]
    return base.of(num_frames).draw(rows, None, generator)


@torch.no_grad()
def decode(
    flow: Flow,
    noise: Tensor,
    context: Tensor | None = None,
    given: Tensor | None = None,
    *,
    window: int | None = None,
    overlap: int | None = None,
    decoding: Decoder | None = None,
) -> Tensor:
    """Decode noise to clips of any length, window after window, which begin with the given frames, if any.

    Args:
        flow: as for `generate`.
        noise: tokens of all frames ``(B, T * frame_length, C)``, as `Flow.decode` takes them; those of given frames are
            not read.
        context: as for `generate`.
        given: as for `generate`.
        window: frames decoded at a time (default, and at most: what the flow has positions for). Every window but the
            first is a clip of its own that begins with the last frames before it (STARFlow-V, arXiv 2511.20462). With T
            up to `window` this is the flow's own conditional distribution.
        overlap: known frames of every window but the first (default: half a window).
        decoding: how the flow is inverted (default: the flow's own).

    Returns:
        ``(B, T, C, H, W)``.

    Raises:
        ValueError: settings or shapes that do not fit, float64 where the flow has float32, or a flow of images.
    """
    transform = _transform(flow)
    length = transform.frame_length
    window = transform.max_frames if window is None else window
    if not 1 <= window <= transform.max_frames:
        raise ValueError(f"window must lie in 1 … {transform.max_frames}, what the flow is made for, got {window!r}.")
    if noise.dim() != 3 or noise.shape[1] % length or not noise.shape[1]:
        raise ValueError(f"noise of shape {tuple(noise.shape)} does not fill frames of {length} tokens.")
    if context is not None and len(context) != len(noise):
        raise ValueError(f"noise of {len(noise)} clips needs a context of as many rows, got {len(context)}.")
    if given is None:
        given = noise.new_zeros(len(noise), 0, *transform.frame_shape)
    noise, given = flow._as_own_dtype(noise, "noise"), flow._as_own_dtype(given, "given frames")
    if given.dim() != 5 or len(given) not in (1, len(noise)):
        raise ValueError(
            f"given frames must have shape (1 or {len(noise)}, frames, channels, height, width), got "
            f"{tuple(given.shape)}."
        )
    num_frames = noise.shape[1] // length
    if given.shape[1] > num_frames:
        raise ValueError(f"{given.shape[1]} frames are given, which are more than the clip is to have.")

    def make(span: Span, known: Tensor) -> Tensor:
        return decode_window(flow, noise[:, span.first * length : span.stop * length], context, known, decoding)

    given = given.expand(len(noise), *given.shape[1:])
    windows = spans(num_frames, given.shape[1], window, overlap)
    return torch.cat([given, *rolling(given, windows, make, window)], dim=1)


@torch.no_grad()
def decode_window(
    flow: Flow, noise: Tensor, context: Tensor | None, known: Tensor, decoding: Decoder | None = None
) -> Tensor:
    """Decode one window: no more frames than the flow has positions for.

    Args:
        flow: as for `generate`.
        noise: tokens of the window's frames ``(B, T * frame_length, C)``.
        context: as for `generate`.
        known: its first frames ``(B, n, C, H, W)``, which may be none.
        decoding: as for `decode`.
    """
    if not known.shape[1]:
        return flow.decode(noise, context, decoding=decoding)
    transform = _transform(flow)
    prefix = transform.encode(known)[0]
    latent, _ = transform.order(noise)
    u = transform.deep.invert(latent, flow._embedded(context), decoding, prefix).tokens
    return torch.cat([known, transform.decode(u[:, prefix.shape[1] :], decoding).tokens], dim=1)


def _transform(flow: Flow) -> DeepShallow:
    transform = flow._transform
    if not isinstance(transform, DeepShallow) or not isinstance(transform.patches, VideoPatches):
        raise ValueError("a rollout takes a STARFlowV, such as a STARFlow's as_clips(), or what its guided() returns.")
    return transform
