"""The frames of image and clip files, one at a time, with the times at which they are shown."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from nflib.errors import first_line
from nflib.optional import require

Pixels = NDArray[np.uint8]

# Formats of Pillow whose frames are moving pictures, and not pages or other views.
MOVING = ("GIF", "PNG", "WEBP", "AVIF", "FLI")
# Of EXIF's orientations.
SIDEWAYS = (5, 6, 7, 8)
# What Pillow's GIFs are shown at where they do not say.
DURATION = Fraction(1, 10)
# Of libswscale BICUBIC, FULL_CHR_H_INT and ACCURATE_RND: without them colours are rounded down, by a level on average.
EXACT_COLOURS = 0x4 | 0x2000 | 0x40000
# Some containers round times to milliseconds.
TOLERANCE = Fraction(1, 1000)
# What Pillow answers damaged files with.
DAMAGE = (
    OSError,
    SyntaxError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class DamagedFile(ValueError):
    """Raised for an image or a clip that cannot be decoded, or not further."""


class Frame(NamedTuple):
    """A frame of a file, not decoded yet.

    Args:
        time: when it is shown, seconds.
        duration: for how long it is shown, seconds.
        pixels: decodes it to RGB, ``(H, W, 3)``.
    """

    time: Fraction
    duration: Fraction
    pixels: Callable[[], Pixels]


class Extent(NamedTuple):
    """How large and how long an image or a clip is.

    Args:
        height: of the first frame, pixels.
        width: of the first frame, pixels.
        start: when the first frame begins to be shown, seconds.
        end: when the last one is no longer shown, seconds.
        frames: about how many there are, since packets are counted.
        longest: for how long one of them is shown at most, seconds.
    """

    height: int
    width: int
    start: Fraction
    end: Fraction
    frames: int
    longest: Fraction

    def times(self, frame_rate: float) -> list[Fraction]:
        """When frames of a clip of that many a second are due; that of an image has one frame."""
        rate = as_rate(frame_rate)
        count = -((self.start + TOLERANCE - self.end) * rate // 1)
        return [self.start + number / rate for number in range(max(int(count), 1))]


def as_rate(frame_rate: float) -> Fraction:
    """Frames a second as a fraction, 29.97 as 30000 / 1001.

    >>> as_rate(12.5), as_rate(29.97)
    (Fraction(25, 2), Fraction(30000, 1001))
    """
    if not 0 < frame_rate < 1000:
        raise ValueError(f"frame_rate must be positive, and less than 1000 frames a second, got {frame_rate!r}.")
    broadcast = Fraction(round(frame_rate) * 1000, 1001)
    return broadcast if abs(broadcast / frame_rate - 1) < 2e-4 else Fraction(frame_rate).limit_denominator(1000)


def extent(file: IO[bytes], name: str, is_image: bool) -> Extent:
    """How large and how long an image or a clip is; of images nothing is decoded, of clips the first frame alone.

    Raises:
        DamagedFile: that cannot be told.
    """
    if not is_image:
        return _video_extent(file, name)
    with _told(name, DAMAGE):
        picture, shown = _picture(file)
        width, height = picture.size
        # To look for what a PNG may say after its pixels, Pillow would decode these; a TIFF's size is as it is shown.
        says = "exif" in picture.info if picture.format == "PNG" else picture.format != "TIFF"
        if says and picture.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS:
            width, height = height, width
    end = longest = Fraction(0)
    if len(shown) > 1:
        for frame in _picture_frames(file, name):
            end, longest = frame.time + frame.duration, max(longest, frame.duration)
    return Extent(height, width, Fraction(0), end, len(shown), longest)


def read_frames(file: IO[bytes], name: str, is_image: bool, start: Fraction | None = None) -> Generator[Frame]:
    """Frames in the order in which they are shown, decoded as they are asked for.

    Args:
        file: open for reading.
        name: of the file, for messages.
        is_image: whether Pillow is to read it, rather than PyAV.
        start: seconds; frames long before are passed over where the file lets one; the last one before it is given.

    Raises:
        DamagedFile: it cannot be decoded, or not further.
    """
    if is_image:
        yield from _picture_frames(file, name)
        return
    with closing(_video_frames(file, name, start)) as frames:
        first = next(frames, None)
        if first is not None and (start is None or first.time <= start + TOLERANCE):
            yield first
            yield from frames
            return
    # No index led to a frame before the start.
    yield from _video_frames(file, name, None)


def frames_at(frames: Iterator[Frame], times: Iterable[Fraction], name: str) -> Iterator[Pixels]:
    """For each time, in ascending order, the frame that is shown then: the last one that began before, or just then.

    Raises:
        DamagedFile: frames end before.
    """
    shown, later = None, next(frames, None)
    pixels: Pixels | None = None
    for time in times:
        while later is not None and (shown is None or later.time <= time + TOLERANCE):
            shown, later, pixels = later, next(frames, None), None
        if shown is None or (later is None and time > shown.time + shown.duration + TOLERANCE):
            raise DamagedFile(f"{name} ends before its time ({float(time):.3f} s).")
        if pixels is None:
            pixels = shown.pixels()
        yield pixels


def rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB, the right way up: what is transparent on white, 16-bit grey scaled.

    Raises:
        ValueError: floating-point numbers, of which nothing says what is white.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        raise ValueError("it has floating-point pixels; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        levels = np.asarray(picture).astype(np.int64)
        levels[levels == picture.info.get("transparency")] = 65535
        picture = Image.fromarray(((levels.clip(0, 65535) * 255 + 32767) // 65535).astype(np.uint8))
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


@contextmanager
def _told(name: str, damage: tuple[type[Exception], ...]) -> Iterator[None]:
    """What decoders say of a file, in one sentence."""
    try:
        yield
    except DamagedFile:
        raise
    except damage as error:
        # Pillow's own words for what it does not know are those of the file object.
        unknown = "no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else None
        reason = unknown or getattr(error, "strerror", None) or first_line(error)
        raise DamagedFile(f"{name} cannot be decoded ({reason}); it is damaged or of another kind.") from error


def _picture(file: IO[bytes]) -> tuple[Image.Image, range]:
    """An image, not decoded yet, and the numbers of the frames that are shown."""
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images below the limit, and of damaged remarks in them
        picture = Image.open(file)
        count = getattr(picture, "n_frames", 1) if picture.format in MOVING else 1
        # What a moving PNG has for readers of still ones is no part of it.
        return picture, range(int(count > 1 and getattr(picture, "default_image", False)), count)


def _picture_frames(file: IO[bytes], name: str) -> Iterator[Frame]:
    with _told(name, DAMAGE):
        picture, shown = _picture(file)
    time = Fraction(0)
    for index in shown:
        with _told(name, DAMAGE):
            picture.seek(index)
            pixels = np.asarray(rgb(picture))
            milliseconds = Fraction(picture.info.get("duration") or 0).limit_denominator(1000)
        duration = milliseconds / 1000 or DURATION
        yield Frame(time, duration, partial(np.asarray, pixels))
        time += duration


def import_av() -> Any:
    """PyAV, or ModuleNotFoundError that says how to get it."""
    return require("av", "videos need PyAV,", extra="video")


@contextmanager
def _opened(file: IO[bytes], name: str) -> Iterator[tuple[Any, Any, Fraction]]:
    """The container of a file, its video stream, and how many times as wide as high its pixels are."""
    av = import_av()
    file.seek(0)
    with _told(name, (av.FFmpegError, OSError, ValueError)), av.open(file) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise DamagedFile(f"{name} holds no video stream.")
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        width = _square(stream.width, aspect)
        if width * stream.height > limit:
            raise DamagedFile(f"{name} has frames of {width} × {stream.height}, beyond {limit} pixels.")
        yield container, stream, aspect


def _video_frames(file: IO[bytes], name: str, start: Fraction | None) -> Generator[Frame]:
    with _opened(file, name) as (container, stream, aspect):
        if start is not None:
            container.seek(int(start / stream.time_base), stream=stream)
        usual = 1 / Fraction(stream.average_rate or stream.guessed_rate or 25)
        end = Fraction(0)
        for frame in container.decode(stream):
            time = end if frame.pts is None else frame.pts * frame.time_base
            duration = frame.duration * frame.time_base if frame.duration else usual
            end = time + duration
            yield Frame(time, duration, partial(_upright, frame, aspect, name))


def _upright(frame: Any, aspect: Fraction, name: str) -> Pixels:
    """As it is shown: with square pixels, and turned as it was held."""
    with _told(name, (import_av().FFmpegError, OSError, ValueError)):
        shown = frame.to_ndarray(format="rgb24", width=_square(frame.width, aspect), interpolation=EXACT_COLOURS)
        pixels: Pixels = np.rot90(shown[::-1] if _is_mirrored(frame) else shown, frame.rotation // 90)
    return pixels


def _is_mirrored(frame: Any) -> bool:
    """Whether its display matrix mirrors it, top to bottom, before it turns it."""
    matrix = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return False
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
    return bool(a * d < b * c)


def _square(width: int, aspect: Fraction) -> int:
    """Of so many pixels in a row, so many times as wide as high, how many square ones make up their width."""
    return max(round(width * aspect), 1)


def _video_extent(file: IO[bytes], name: str) -> Extent:
    """From the first frame and the times of all packets, which are not decoded."""
    first, end, count = None, None, 0
    times: list[Fraction] = []
    with _opened(file, name) as (container, stream, aspect):
        usual = 1 / Fraction(stream.average_rate or stream.guessed_rate or 25)
        for packet in container.demux(stream):
            count += packet.size > 0  # the last one has none, and brings out what is left
            if packet.pts is not None:
                duration = packet.duration * packet.time_base if packet.duration else usual
                times.append(packet.pts * packet.time_base)
                end = times[-1] + duration if end is None else max(end, times[-1] + duration)
            if first is None:
                first = next(iter(packet.decode()), None)
        if first is None:
            raise DamagedFile(f"{name} has no frame that can be decoded.")
        height, width = _upright(first, aspect, name).shape[:2]
        start = Fraction(0) if first.pts is None else first.pts * first.time_base
        if end is None:
            return Extent(height, width, start, start + count * usual, count, usual)
        longest = max(later - time for time, later in pairwise([*sorted(times), end]))
        return Extent(height, width, start, end, count, longest)
