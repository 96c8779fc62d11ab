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
from video.flows.patches import FrameNoise


class Span(NamedTuple):
    """A window: frames first … stop of a clip, known up to done; if anchored, its first frame is the clip's first."""

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
        """What there is of it in the frames ``(B, T, …)`` of a clip."""
        own = frames[:, self.first : self.stop]
        return torch.cat([frames[:, :1], own[:, 1:]], dim=1) if self.is_anchored else own


def spans(
    num_frames: int, num_known: int, window: int, overlap: int | None = None, *, is_anchored: bool = False
) -> Iterator[Span]:
    """The windows, one after the other, of a clip whose first frames are known.

    Args:
        num_frames: of the clip.
        num_known: of these.
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
    """The last `limit` frames of a clip that grows, and its first one, by their numbers: what its windows read."""

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
    """What each window adds to the known frames ``(B, n, …)``; no more than the last window is kept.

    make: (window, its known frames) -> all frames of the window.
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
    """Clips ``(B, num_frames, C, H, W)``, one for each row of the context, that begin with the given frames.

    Args:
        flow: a `STARFlowV`, or what its `guided` returns.
        num_frames: of the clips.
        context: one row a clip.
        given: the first frames ``(B or 1, n, C, H, W)``, which come back unchanged: one for image to video, more to
            continue a clip. None: all frames are generated; B is then 1 without a context.
        window, overlap, decoding: as for `decode`.
        generator, seed: as for `Flow.sample`.

    Raises:
        ValueError: settings or shapes that do not fit.

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
    """Standard normal tokens ``(rows, num_frames * frame_length, C)``, as `decode` takes them."""
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
    """The clips that begin with the given frames and whose other frames come from `noise`.

    Args:
        flow, context, given: as for `generate`.
        noise: tokens of all frames ``(B, T * frame_length, C)``, as `Flow.decode` takes them; those of given frames are
            not read.
        window: frames decoded at a time (default, and at most: what the flow has positions for). Every window but the
            first is a clip of its own that begins with the last frames before it (STARFlow-V, arXiv 2511.20462). With T
            up to `window` this is the flow's own conditional distribution.
        overlap: how many (default: half a window).
        decoding: of the maps.

    Raises:
        ValueError: settings or shapes that do not fit.
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
    """`decode` of no more frames than the flow has positions for; known frames ``(B, n, C, H, W)`` may be none."""
    if not known.shape[1]:
        return flow.decode(noise, context, decoding=decoding)
    transform = _transform(flow)
    prefix = transform.encode(known)[0]
    latent, _ = transform.order(noise)
    u = transform.deep.invert(latent, flow._embedding_net(context), decoding, prefix).tokens
    return torch.cat([known, transform.decode(u[:, prefix.shape[1] :], decoding).tokens], dim=1)


def _transform(flow: Flow) -> DeepShallow:
    transform = flow._transform
    if not isinstance(transform, DeepShallow):
        raise ValueError("a rollout takes a STARFlowV, or what its guided() returns.")
    return transform
