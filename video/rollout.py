"""Clips that continue given frames, and clips longer than a flow's positions: window after window."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nflib.decoding import Decoder
from nflib.flows import Flow
from video.flows.deep_shallow import DeepShallow
from video.flows.patches import FrameNoise


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

    flow: a `STARFlowV`, or what its `guided` returns. given: the first frames ``(B or 1, n, C, H, W)``, which come
    back unchanged: one for image to video, more to continue a clip (None: all frames are generated; B is then 1
    without a context). window, overlap, decoding: as for `decode`; generator, seed: as for `Flow.sample`. Raises
    ValueError for settings or shapes that do not fit.

    >>> import torch
    >>> from video import STARFlowV, rollout
    >>> flow = STARFlowV((3, 3, 8, 8), channels=64, layers_per_block=[1, 1], text_length=5, text_channels=16)
    >>> rollout.generate(flow, 7, torch.zeros(2, 5, 16), torch.zeros(1, 1, 3, 8, 8), seed=0).shape
    torch.Size([2, 7, 3, 8, 8])
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be a positive number, got {num_frames!r}.")
    if generator is not None and seed is not None:
        raise ValueError("pass either a generator or a seed to generate, not both.")
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
    transform = _transform(flow)
    rows = len(context) if context is not None else len(given) if given is not None else 1
    base = FrameNoise(num_frames, transform.frame_length, transform.deep.token_size)
    location = flow._distribution.get_buffer("location")
    noise = base.to(device=location.device, dtype=location.dtype).draw(rows, None, generator)
    return decode(flow, noise, context, given, window=window, overlap=overlap, decoding=decoding)


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

    noise: tokens of all frames ``(B, T * frame_length, C)``, as `Flow.decode` takes them; those of given frames are not
    read. The deep map is inverted over `window` frames at a time (default, and at most: what the flow has positions
    for); every window but the first is a clip of its own, whose first `overlap` frames are the last known ones
    (default: half a window; STARFlow-V, arXiv 2511.20462). With T up to `window` this is the flow's own conditional
    distribution. Raises ValueError for settings or shapes that do not fit.
    """
    transform = _transform(flow)
    window = transform.max_frames if window is None else window
    overlap = window // 2 if overlap is None else overlap
    if not 1 <= window <= transform.max_frames:
        raise ValueError(f"window must lie in 1 … {transform.max_frames}, what the flow is made for, got {window!r}.")
    if not 0 <= overlap < window:
        raise ValueError(f"overlap must lie in 0 … {window - 1}, fewer frames than the window's, got {overlap!r}.")
    if noise.dim() != 3 or noise.shape[1] % transform.frame_length or not noise.shape[1]:
        raise ValueError(
            f"noise of shape {tuple(noise.shape)} does not fill frames of {transform.frame_length} tokens."
        )
    if context is not None and len(context) != len(noise):
        raise ValueError(f"noise of {len(noise)} clips needs a context of as many rows, got {len(context)}.")
    if given is not None and (given.dim() != 5 or len(given) not in (1, len(noise))):
        raise ValueError(
            f"given frames must have shape (1 or {len(noise)}, frames, channels, height, width), got "
            f"{tuple(given.shape)}."
        )
    frames = [] if given is None else [given.expand(len(noise), *given.shape[1:])]
    known = noise[:, :0] if given is None else transform.encode(frames[0])[0]
    if known.shape[1] > noise.shape[1]:
        raise ValueError(f"{frames[0].shape[1]} frames are given, which are more than the clip is to have.")
    embedded = flow._embedding_net(context)
    for u in _windows(transform, noise, known, embedded, window, overlap, decoding):
        frames.append(transform.decode(u, decoding).tokens)
    return torch.cat(frames, dim=1)


def _windows(
    transform: DeepShallow,
    noise: Tensor,
    known: Tensor,
    context: Tensor | None,
    window: int,
    overlap: int,
    decoding: Decoder | None,
) -> Iterator[Tensor]:
    """The new tokens u of one window after the other, in the order of the deep map."""
    length = transform.frame_length
    latent, _ = transform.order(noise)
    for first, done, stop in windows(noise.shape[1] // length, known.shape[1] // length, window, overlap):
        prefix = known[:, known.shape[1] - (done - first) * length :]
        u = transform.deep.invert(latent[:, first * length : stop * length], context, decoding, prefix).tokens
        new = u[:, (done - first) * length :]
        yield new
        known = torch.cat([prefix, new], dim=1)


def windows(num_frames: int, num_known: int, window: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """Windows one after the other: each of the frames first … stop, of which those before done are known.

    >>> list(windows(9, 1, 4, 2))
    [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 9)]
    """
    done = num_known
    while done < num_frames:
        first = 0 if done < window else done - overlap
        stop = min(first + window, num_frames)
        yield first, done, stop
        done = stop


def _transform(flow: Flow) -> DeepShallow:
    transform = flow._transform
    if not isinstance(transform, DeepShallow):
        raise ValueError("a rollout takes a STARFlowV, or what its guided() returns.")
    return transform
