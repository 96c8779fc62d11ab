"""Clips and images as files: MP4 by PyAV, GIF and PNG by Pillow."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nflib.io import complete_file
from video.data.decoding import Extent, Frame, frames_at, import_av, read_frames
from video.data.sizes import as_clip, fit_frame
from video.errors import first_line

VIDEO = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
IMAGE = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# Codecs in the order in which they are tried; the last is part of every build of FFmpeg.
CODECS = ("libx264", "libopenh264", "mpeg4")
# Rates that differ by less than this share are taken for the same.
SAME_RATE = 0.1

log = logging.getLogger(__name__)


def write_clip(
    clip: Tensor,
    path: str | os.PathLike[str],
    frame_rate: float = 8.0,
    *,
    enlarge: int = 1,
    codec: str | None = None,
) -> Path:
    """Write a clip ``(T, C, H, W)`` in -1 … 1 as the suffix says: .mp4 (and the like), .gif, or a strip as .png.

    enlarge: each pixel becomes so many squared; frames of an enlarged strip stand apart. codec: FFmpeg's name (default:
    the first of H.264's that is there, at a quality that the eye cannot tell from the clip, else MPEG-4's). Raises
    ValueError for clips of another shape, odd sizes in a video, or an unknown suffix or codec, OSError where the file
    cannot be written; what was there then stays.
    """
    with open_clip(path, frame_rate, enlarge=enlarge, codec=codec) as add:
        add(clip)
    return Path(path)


@contextmanager
def open_clip(
    path: str | os.PathLike[str], frame_rate: float = 8.0, *, enlarge: int = 1, codec: str | None = None
) -> Iterator[Callable[[Tensor], None]]:
    """A function that takes the frames ``(T, C, H, W)`` of a clip, piece after piece; else as for `write_clip`.

    Frames of a video are encoded as they come, those of a GIF or PNG kept until the end of the block.
    """
    path = check_suffix(path)
    if not 0 < frame_rate < math.inf:
        raise ValueError(f"frame_rate must be positive, got {frame_rate!r}.")
    with complete_file(path) as temporary:
        if path.suffix in VIDEO:
            with _open_video(path, temporary, frame_rate, codec) as encode:
                yield lambda piece: encode(as_bytes(piece, enlarge))
            return
        frames: list[np.ndarray] = []
        yield lambda piece: frames.extend(as_bytes(piece, enlarge))
        if path.suffix == ".gif":
            pictures = [Image.fromarray(frame) for frame in frames]
            duration = max(round(1000 / frame_rate), 20)
            pictures[0].save(temporary, save_all=True, append_images=pictures[1:], duration=duration, loop=0)
        else:
            Image.fromarray(_strip(frames, enlarge // 2)).save(temporary)


def grid(pictures: Tensor, gap: int = 2, columns: int | None = None) -> Tensor:
    """Pictures ``(N, C, H, W)`` side by side, in about as many rows as columns, as one ``(1, C, …, …)``; gaps are grey.

    columns: so many in a row.

    >>> grid(torch.zeros(5, 3, 8, 8)).shape
    torch.Size([1, 3, 18, 28])
    """
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    empty = pictures.new_zeros(rows * columns - len(pictures), *pictures.shape[1:])
    apart = torch.nn.functional.pad(torch.cat([pictures, empty]), (0, gap, 0, gap))
    tiled = apart.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    return tiled[None, :, : tiled.shape[1] - gap, : tiled.shape[2] - gap]


def check_suffix(path: str | os.PathLike[str]) -> Path:
    """The path, if its suffix is one that `write_clip` knows; else raises ValueError."""
    path = Path(path)
    known = [*VIDEO, ".gif", ".png"]
    if path.suffix not in known:
        raise ValueError(f"{path} ends in none of {', '.join(known)}; choose one of them.")
    return path


def read_clip(
    path: str | os.PathLike[str],
    frame_shape: tuple[int, int, int] | None = None,
    frame_rate: float | None = None,
) -> Tensor:
    """The frames of a video or GIF, or the one of an image, ``(T, C, H, W)`` in -1 … 1.

    Args:
        path: the file.
        frame_shape: ``(C, H, W)`` as which frames are wanted (default: ``(3, …)``, the size they have): grey if C is 1;
            others are resized and their centre is cropped, as training does it.
        frame_rate: frames a second, which are taken from a clip of another rate (default: all frames). Rates that
            differ by less than a tenth are taken for the same, since GIFs round theirs.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is empty, damaged or no video.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give the path of a video or an image.")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty: it has no frame; give the path of a video or an image.")
    with path.open("rb") as file:
        frames = list(read_frames(file, str(path), path.suffix.lower() in (*IMAGE, ".gif")))
    if not frames:
        raise ValueError(f"{path} has no frame that can be decoded; it is damaged or holds no video.")
    pictures = [frame.pixels() for frame in frames] if frame_rate is None else _at_rate(frames, frame_rate, path)
    if frame_shape is None:
        return as_clip(pictures)
    channels, height, width = frame_shape
    own_height, own_width = pictures[0].shape[:2]
    if own_height * width != own_width * height:
        log.info("%s: frames of %d × %d are cropped for %d × %d.", path, own_width, own_height, width, height)
    return as_clip([_fitted(picture, height, width) for picture in pictures], channels)


def _at_rate(frames: Sequence[Frame], frame_rate: float, path: Path) -> list[np.ndarray]:
    """The frames that are shown at times that many a second."""
    start, end = frames[0].time, frames[-1].time + frames[-1].duration
    own_rate = len(frames) / float(end - start)
    if len(frames) == 1 or abs(own_rate / frame_rate - 1) < SAME_RATE:
        return [frame.pixels() for frame in frames]
    height, width = frames[0].pixels().shape[:2]
    taken = list(frames_at(iter(frames), Extent(height, width, start, end).times(frame_rate), str(path)))
    log.info("%s: of %d frames, %.4g a second, %d are taken.", path, len(frames), own_rate, len(taken))
    return taken


def _fitted(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A frame ``(H, W, 3)`` in the size that is wanted; pixels that were enlarged come back as they were."""
    rows, columns = picture.shape[0] // height, picture.shape[1] // width
    if picture.shape[:2] != (rows * height, columns * width) or rows != columns:
        return fit_frame(picture, height, width)
    blocks = picture.reshape(height, rows, width, columns, picture.shape[2]).mean((1, 3))
    return blocks.round().astype(np.uint8)


def read_image(path: str | os.PathLike[str], frame_shape: tuple[int, int, int] | None = None) -> Tensor:
    """The image in a file as a clip of one frame: see `read_clip`, which raises the same."""
    return read_clip(path, frame_shape)[:1]


def as_bytes(clip: Tensor, enlarge: int = 1) -> np.ndarray:
    """Frames ``(T, H, W, 3)`` of 8 bits of a clip ``(T, 1 or 3, H, W)`` in -1 … 1."""
    if clip.dim() != 4 or clip.shape[1] not in (1, 3) or not clip.numel():
        raise ValueError(f"expected a clip of shape (frames, 1 or 3, height, width), got {tuple(clip.shape)}.")
    if enlarge < 1:
        raise ValueError(f"enlarge must be a positive number, got {enlarge}.")
    levels = ((clip.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    levels = levels.repeat_interleave(enlarge, 2).repeat_interleave(enlarge, 3)
    frames: np.ndarray = levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    return frames


def _strip(frames: Sequence[np.ndarray], gap: int) -> np.ndarray:
    """Frames side by side, with so many grey columns between them."""
    apart = np.pad(np.stack(frames), ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=128)
    side_by_side = np.concatenate(list(apart), axis=1)
    return side_by_side[:, : side_by_side.shape[1] - gap]


def _codec(av: Any, wanted: str | None, path: Path) -> str:
    available = av.codecs_available
    for name in CODECS if wanted is None else (wanted,):
        if name in available and _encodes(av, name):
            return name
    raise ValueError(
        f"{path} cannot be written: this build of PyAV has no encoder {wanted or ', '.join(CODECS)}; choose a .gif or "
        "a .png, or install PyAV from its wheels."
    )


def _encodes(av: Any, name: str) -> bool:
    try:
        return bool(av.Codec(name, "w").is_encoder)
    except (ValueError, av.FFmpegError):
        return False


@contextmanager
def _open_video(
    path: Path, temporary: Path, frame_rate: float, codec: str | None
) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that writes frames to a temporary path of what is to be at `path`."""
    av = import_av()
    name = _codec(av, codec, path)
    stream: Any = None

    def encode(frames: np.ndarray) -> None:
        nonlocal stream
        height, width = frames.shape[1:3]
        if height % 2 or width % 2:
            raise ValueError(
                f"{path} cannot have frames of {width} × {height}: videos have even sizes; enlarge them twice, or "
                "choose a .gif or a .png."
            )
        if stream is None:
            stream = container.add_stream(name, rate=Fraction(frame_rate).limit_denominator(1000))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {"crf": "12"} if name == "libx264" else {"qscale": "2"} if name == "mpeg4" else {}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    try:
        with av.open(str(temporary), "w") as container:
            yield encode
            container.mux(stream.encode())
    except av.FFmpegError as error:
        raise OSError(
            f"{path} cannot be written ({_reason(error)}), and keeps what it had; make room or choose another file."
        ) from error


def _reason(error: Exception) -> str:
    """Of an error of FFmpeg's, without the name of a temporary file."""
    return getattr(error, "strerror", None) or first_line(error)
