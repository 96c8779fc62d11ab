"""Clips and images as files: MP4 by PyAV, GIF and PNG by Pillow."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nflib.errors import first_line
from nflib.io import complete_file
from video.data.decoding import extent, frames_at, import_av, read_frames
from video.data.samples import IMAGES
from video.data.sizes import as_clip, fit_frame
from video.latents.levels import as_pixels

VIDEO = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
# Codecs in the order in which they are tried; the last is part of every build of FFmpeg.
CODECS = ("libx264", "libopenh264", "mpeg4")
# Of containers that hold none of these.
OTHER_CODECS = {".webm": ("libvpx-vp9", "libvpx")}
# At a quality that the eye cannot tell from the clip.
VPX = {"crf": "12", "b": "50M", "cpu-used": "4"}
QUALITY = {"libx264": {"crf": "12"}, "mpeg4": {"qscale": "2"}, "libvpx-vp9": VPX, "libvpx": VPX}
# What frames of RGB become, the matrix of BT.601 (SMPTE 170M) and 16 … 235, said in the file: players guess another one
# of large frames.
COLOURS = {"colorspace": 6, "color_range": 1}
# Frames a second: what is shown for less than 2/100 s is slowed down by browsers.
FASTEST_GIF = 50
# Variance of the levels, of 255, inside pixels that were enlarged and then compressed.
ENLARGED = 1.0
# Rates that differ by less than this share are taken for the same, where no frame is shown for more than so many steps.
SAME_RATE, LONGEST = 0.1, 1.5

log = logging.getLogger(__name__)


def write_clip(
    clip: Tensor,
    path: str | os.PathLike[str],
    frame_rate: float = 8.0,
    *,
    enlarge: int = 1,
    codec: str | None = None,
) -> Path:
    """Write a clip as a video (.mp4 and the like), a .gif, or as a strip of its frames (.png).

    Args:
        clip: ``(T, C, H, W)`` in -1 … 1, of 1 or 3 channels.
        path: of the file, whose suffix says the format.
        frame_rate: frames a second; those of a GIF last whole hundredths of a second, two at least.
        enlarge: each pixel becomes so many squared; frames of an enlarged strip stand apart.
        codec: FFmpeg's name (default: the first of H.264's that is there, at a quality that the eye cannot tell from
            the clip, else MPEG-4's; of a .webm VP9's).

    Returns:
        The path.

    Raises:
        ValueError: a clip of another shape, of integers or NaN, odd sizes in a video, or an unknown suffix or codec.
        OSError: the file cannot be written; what was there then stays.
    """
    with open_clip(path, frame_rate, enlarge=enlarge, codec=codec) as add:
        add(clip)
    return Path(path)


@contextmanager
def open_clip(
    path: str | os.PathLike[str], frame_rate: float = 8.0, *, enlarge: int = 1, codec: str | None = None
) -> Iterator[Callable[[Tensor], None]]:
    """Write a clip piece by piece: a context manager that gives a function of frames ``(T, C, H, W)``.

    Frames of a video are encoded as they come, those of a GIF or PNG kept until the end of the block.

    Args:
        path: as of `write_clip`.
        frame_rate: as of `write_clip`.
        enlarge: as of `write_clip`.
        codec: as of `write_clip`.

    Raises:
        ValueError, OSError: as `write_clip`.
    """
    path = check_path(path, codec)
    if not 0 < frame_rate < math.inf:
        raise ValueError(f"frame_rate must be positive, got {frame_rate!r}.")
    with complete_file(path) as temporary:
        if path.suffix.lower() in VIDEO:
            with _open_video(path, temporary, frame_rate, codec) as encode:
                yield lambda piece: encode(as_bytes(piece, enlarge))
            return
        frames: list[np.ndarray] = []
        yield lambda piece: frames.extend(as_bytes(piece, enlarge))
        if path.suffix.lower() == ".gif":
            if frame_rate > FASTEST_GIF:
                log.warning("%s: a GIF cannot show %g frames a second, but %d.", path, frame_rate, FASTEST_GIF)
            _save_gif(frames, temporary, min(frame_rate, FASTEST_GIF))
        else:
            Image.fromarray(_strip(frames, enlarge // 2)).save(temporary)


def grid(clips: Tensor, columns: int | None = None, gap: int = 2) -> Tensor:
    """Clips side by side as one clip ``(T, C, …, …)``, with grey gaps between them.

    Args:
        clips: ``(N, T, C, H, W)``.
        columns: clips in a row (default: about as many as there are rows).
        gap: pixels between clips.

    >>> grid(torch.zeros(5, 2, 3, 8, 8)).shape
    torch.Size([2, 3, 18, 28])
    """
    columns = columns or math.ceil(math.sqrt(len(clips)))
    empty = clips.new_zeros(-len(clips) % columns, *clips.shape[1:])
    apart = torch.nn.functional.pad(torch.cat([clips, empty]), (0, gap, 0, gap))
    tiled = apart.unflatten(0, (-1, columns)).permute(2, 3, 0, 4, 1, 5).flatten(4).flatten(2, 3)
    return tiled[..., : tiled.shape[2] - gap, : tiled.shape[3] - gap]


def check_path(path: str | os.PathLike[str], codec: str | None = None) -> Path:
    """The path, if `write_clip` knows its suffix and has an encoder for it; else raises ValueError."""
    path = Path(path)
    known = [*VIDEO, ".gif", ".png"]
    if path.suffix.lower() not in known:
        raise ValueError(f"{path} ends in none of {', '.join(known)}; choose one of them.")
    if path.suffix.lower() in VIDEO:
        _codec(path, codec)
    return path


def read_clip(
    path: str | os.PathLike[str],
    frame_shape: tuple[int, int, int] | None = None,
    frame_rate: float | None = None,
) -> Tensor:
    """Read the frames of a video or GIF, or the one of an image, as a clip ``(T, C, H, W)`` in -1 … 1.

    Args:
        path: the file.
        frame_shape: ``(C, H, W)`` as which frames are wanted (default: ``(3, …)``, the size they have): grey if C is 1;
            others are resized and their centre is cropped, as training does it; what `write_clip` enlarged comes back.
        frame_rate: frames a second, which are taken from a clip of another rate (default: all frames). Rates that
            differ by less than a tenth are taken for the same, since GIFs round theirs, unless frames are uneven.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is empty, damaged or no video, or a frame rate that is none.
    """
    with _pictures(Path(path), frame_rate) as pictures:
        return _fitted(pictures, frame_shape, Path(path))


def read_image(path: str | os.PathLike[str], frame_shape: tuple[int, int, int] | None = None) -> Tensor:
    """Read the image in a file, or its first frame, as a clip of one frame ``(1, C, H, W)`` in -1 … 1.

    Args:
        path: as of `read_clip`.
        frame_shape: as of `read_clip`.

    Raises:
        FileNotFoundError, ValueError: as `read_clip`.
    """
    with _pictures(Path(path), None) as pictures:
        return _fitted(islice(pictures, 1), frame_shape, Path(path))


@contextmanager
def _pictures(path: Path, frame_rate: float | None) -> Iterator[Iterator[NDArray[np.uint8]]]:
    """The frames ``(H, W, 3)`` of a file, at that many a second, each decoded when it is asked for."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give the path of a video or an image.")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty: it has no frame; give the path of a video or an image.")
    name, is_image = str(path), path.suffix.lower() in IMAGES
    with path.open("rb") as file:
        size = None if frame_rate is None else extent(file, name, is_image)
        with closing(read_frames(file, name, is_image)) as frames:
            own_rate = None if size is None or size.frames == 1 else size.frames / float(size.end - size.start)
            if frame_rate is None or size is None or own_rate is None or _is_same(own_rate, frame_rate, size.longest):
                yield (frame.pixels() for frame in frames)
                return
            times = size.times(frame_rate)
            log.info("%s: of %d frames, %.4g a second, %d are taken.", path, size.frames, own_rate, len(times))
            yield frames_at(frames, times, name)


def _is_same(own_rate: float, frame_rate: float, longest: Fraction) -> bool:
    return abs(own_rate - frame_rate) < SAME_RATE * frame_rate and longest * frame_rate < LONGEST


def _fitted(pictures: Iterable[NDArray[np.uint8]], frame_shape: tuple[int, int, int] | None, path: Path) -> Tensor:
    """Frames as one clip, each in the size that is wanted before the next one is decoded."""
    fitted: list[NDArray[np.uint8]] = []
    for picture in pictures:
        if frame_shape is None:
            fitted.append(picture)
            continue
        _, height, width = frame_shape
        own_height, own_width = picture.shape[:2]
        if not fitted and own_height * width != own_width * height:
            log.info("%s: frames of %d × %d are cropped for %d × %d.", path, own_width, own_height, width, height)
        fitted.append(_reduced(picture, height, width))
    if not fitted:
        raise ValueError(f"{path} has no frame that can be decoded; it is damaged or holds no video.")
    return as_clip(fitted, frame_shape[0] if frame_shape else 3)


def _reduced(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """A frame ``(H, W, 3)`` in the size that is wanted; pixels that were enlarged come back as they were."""
    times = picture.shape[0] // height
    if times > 1 and picture.shape[:2] == (times * height, times * width):
        blocks = picture.reshape(height, times, width, times, -1)
        if blocks.var((1, 3)).mean() < ENLARGED:
            return blocks.mean((1, 3)).round().astype(np.uint8)
    return fit_frame(picture, height, width)


def as_bytes(clip: Tensor, enlarge: int = 1) -> np.ndarray:
    """Frames ``(T, H, W, 3)`` of 8 bits of a clip ``(T, 1 or 3, H, W)`` in -1 … 1."""
    clip = as_pixels(clip)
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


def _save_gif(frames: Sequence[np.ndarray], path: Path, frame_rate: float) -> None:
    """Write a GIF with all frames, of which each begins at its time or, since times are rounded, just before it."""
    starts = [int(100 * number / Fraction(frame_rate)) for number in range(len(frames) + 1)]
    durations = [10 * (end - start) for start, end in pairwise(starts)]
    pictures = [Image.fromarray(frames[0])]
    for before, frame in pairwise(frames):
        # Of equal frames Pillow would make one: every other one lets see through to the one before.
        is_repeated = pictures[-1].mode == "RGB" and np.array_equal(before, frame)
        pictures.append(Image.new("RGBA", pictures[0].size) if is_repeated else Image.fromarray(frame))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def _codec(path: Path, wanted: str | None) -> str:
    """FFmpeg's name of the encoder for a file; raises ValueError where there is none."""
    av = import_av()
    names = OTHER_CODECS.get(path.suffix.lower(), CODECS) if wanted is None else (wanted,)
    for name in names:
        if name in av.codecs_available and _encodes(av, name):
            return name
    raise ValueError(
        f"{path} cannot be written: this build of PyAV has no encoder {', '.join(names)}; choose a .gif or a .png, or "
        "install PyAV from its wheels."
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
    name = _codec(path, codec)
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
            stream.options = QUALITY.get(name, {})
            for setting, value in COLOURS.items():
                setattr(stream.codec_context, setting, value)
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
