"""Frames and their times come out of image and clip files of all kinds as they went in."""

import io
import struct
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from tests.video.files import gradient, numbers, png, write_image, write_video
from video.data.decoding import DamagedFile, as_rate, extent, frames_at, read_frames
from video.media import read_clip


def at_rate(path, rate, is_image=False):
    with path.open("rb") as file:
        times = extent(file, path.name, is_image).times(rate)
        return list(frames_at(read_frames(file, path.name, is_image), times, path.name))


def pixels_of(content):
    file = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
    with file:
        return next(read_frames(file, "a.png", True)).pixels()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm", ".avi"])
@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (24, list(range(12))),
        (12, [0, 2, 4, 6, 8, 10]),
        (8, [0, 3, 6, 9]),
        # Frame 24 k / 16 rounded down: the nearest that had begun.
        (16, [0, 1, 3, 4, 6, 7, 9, 10]),
        (48, [number // 2 for number in range(24)]),
    ],
)
def test_resampling(tmp_path, suffix, rate, expected):
    codec = {".webm": "libvpx-vp9", ".avi": "mpeg4"}.get(suffix, "libx264")
    path = write_video(tmp_path / f"clip{suffix}", rate=24, codec=codec)
    assert numbers(at_rate(path, rate)) == expected


def test_broadcast_rates():
    assert as_rate(23.976) == Fraction(24000, 1001)
    assert as_rate(23.98) == Fraction(24000, 1001)
    assert [as_rate(float(rate)) for rate in range(1, 121)] == list(range(1, 121))
    assert as_rate(0.5) == Fraction(1, 2)
    with pytest.raises(ValueError, match="must be positive"):
        as_rate(0.0)


def test_variable_frame_rate(tmp_path):
    times = [0, 100, 150, 400, 450, 1000]
    path = write_video(tmp_path / "clip.mp4", 6, rate=10, times=times)
    # Due at 0, .2, .4 …; the last frame is shown from 1.0 on.
    assert numbers(at_rate(path, 5)) == [0, 2, 3, 4, 4, 5]


def test_times_that_do_not_begin_at_zero(tmp_path):
    path = write_video(tmp_path / "clip.mkv", 6, rate=10, times=[5000 + 100 * number for number in range(6)])
    assert numbers(at_rate(path, 5)) == [0, 2, 4]


@pytest.mark.parametrize("gop", [1, 4, 100])
def test_frames_from_a_start(tmp_path, gop):
    path = write_video(tmp_path / "clip.mp4", 20, rate=10, gop=gop)
    with path.open("rb") as file:
        times = extent(file, "clip", False).times(10)
        for first in (0, 3, 13, 19):
            frames = read_frames(file, "clip", False, times[first])
            assert numbers(frames_at(frames, times[first : first + 3], "clip")) == list(range(20))[first : first + 3]


def test_no_more_is_decoded_than_asked_for(tmp_path):
    path = write_video(tmp_path / "clip.mp4", 20, rate=10)
    with path.open("rb") as file:
        frames = read_frames(file, "clip", False)
        assert numbers(frames_at(frames, [Fraction(0), Fraction(1, 10)], "clip")) == [0, 1]
        assert numbers([next(frames).pixels()]) == [3]  # one beyond the second had to be seen


def turn(path, a=0, b=1, c=-1, d=0):
    """Have the track's matrix show what is at (x, y) at (a x + c y, b x + d y), but for where that begins."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    content[matrix : matrix + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 16 << 16, 0, 1 << 30)
    path.write_bytes(content)


def test_rotated_video(tmp_path):
    """As phones write them: the track's matrix says that what was recorded lies on its side."""
    path = write_video(tmp_path / "clip.mp4", 2, size=(16, 32))
    turn(path)
    with path.open("rb") as file:
        assert extent(file, "clip", False)[:2] == (32, 16)
        assert next(read_frames(file, "clip", False)).pixels().shape == (32, 16, 3)


@pytest.mark.parametrize("mirror", [1, -1])
@pytest.mark.parametrize(("a", "b"), [(1, 0), (0, 1), (-1, 0), (0, -1)])
def test_mirrored_video(tmp_path, a, b, mirror):
    """As front cameras may write them: each corner is where the matrix puts it."""
    c, d = -mirror * b, mirror * a
    path = write_video(tmp_path / "clip.mp4", 1, size=(32, 32), quarters=(20, 80, 140, 200))
    turn(path, a, b, c, d)
    with path.open("rb") as file:
        pixels = next(read_frames(file, "clip", False)).pixels()
    shown = {(a * x + c * y, b * x + d * y): 20 + 60 * (x > 0) + 120 * (y > 0) for x in (-1, 1) for y in (-1, 1)}
    for (x, y), level in shown.items():
        assert pixels[16 + 8 * y, 16 + 8 * x] == pytest.approx(level, abs=4)


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(2), 96), (Fraction(1, 2), 24), (Fraction(12, 11), 52)])
@pytest.mark.parametrize("is_turned", [False, True])
def test_pixels_that_are_not_square(tmp_path, aspect, width, is_turned):
    path = write_video(tmp_path / "clip.mp4", 4, size=(36, 48), aspect=aspect)
    if is_turned:
        turn(path)
    shape = (width, 36) if is_turned else (36, width)
    with path.open("rb") as file:
        assert extent(file, "clip", False)[:2] == shape
        assert [frame.pixels().shape[:2] for frame in read_frames(file, "clip", False)] == [shape] * 4
    assert read_clip(path).shape[2:] == shape


def test_moving_pictures(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), 20 + 10 * number, np.uint8)) for number in range(4)]
    for name in ("clip.gif", "clip.webp", "clip.png"):
        frames[0].save(
            tmp_path / name, save_all=True, append_images=frames[1:], duration=[100, 200, 100, 100], lossless=True
        )
        assert numbers(at_rate(tmp_path / name, 10, True)) == [0, 1, 1, 2, 3]
    frames[0].save(tmp_path / "still.gif", save_all=True, append_images=frames[1:])  # says of no duration: 1/10 s each
    assert numbers(at_rate(tmp_path / "still.gif", 10, True)) == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [2, 4])
def test_the_still_picture_of_a_moving_png_is_left_out(tmp_path, count):
    still, *frames = [Image.fromarray(np.full((8, 8, 3), 20 + 10 * number, np.uint8)) for number in range(count)]
    path = tmp_path / "clip.png"
    still.save(path, save_all=True, append_images=frames, default_image=True, duration=[100] * (count - 1))
    assert numbers(at_rate(path, 10, True)) == list(range(1, count))


def test_pages_are_no_clip(tmp_path):
    pages = [Image.fromarray(gradient(8, 8))] * 3
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    assert len(at_rate(tmp_path / "pages.tiff", 10, True)) == 1


def test_grey_and_palette():
    grey = gradient(20, 24)[..., 0]
    assert np.array_equal(pixels_of(png(grey)), np.stack([grey] * 3, -1))
    file = io.BytesIO()
    Image.fromarray(np.repeat(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8), 4, 0)).convert("P").save(file, "png")
    assert pixels_of(file.getvalue())[2].tolist() == [[255, 0, 0], [0, 0, 255]]


def test_transparent_is_white():
    colour = np.zeros((4, 4, 4), np.uint8)
    colour[..., 0] = 200
    colour[0, 0, 3], colour[1, 1, 3] = 255, 51
    pixels = pixels_of(png(colour))
    assert pixels[0, 0].tolist() == [200, 0, 0]
    assert pixels[3, 3].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [244, 204, 204]  # a fifth of it: 255 + (200 - 255) / 5, 255 - 255 / 5
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 7]], np.uint8)).save(file, "png", transparency=7)
    deep = io.BytesIO()
    Image.fromarray(np.array([[0, 700]], np.uint16)).save(deep, "png", transparency=700)
    assert pixels_of(deep.getvalue())[0].tolist() == [[0, 0, 0], [255, 255, 255]]
    assert pixels_of(file.getvalue())[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_sixteen_bits():
    levels = np.array([[0, 257, 257 * 100, 65535]], np.uint16)
    assert pixels_of(png(levels))[0, :, 0].tolist() == [0, 1, 100, 255]


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_orientation(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    path = write_image(tmp_path / name, exif=exif)
    assert np.array_equal(pixels_of(path), np.rot90(gradient(20, 24), -1))
    with path.open("rb") as file:
        assert extent(file, name, True)[:2] == (24, 20)


def test_too_large(monkeypatch):
    content = png()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DamagedFile, match=r"a\.png cannot be decoded .* exceeds limit of 200 pixels"):
        pixels_of(content)


def test_too_large_video(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DamagedFile, match="frames of 32 × 32, beyond 200 pixels"):
        at_rate(path, 8)


@pytest.mark.parametrize("kept", [0, 10, 200, 900])
def test_damaged_image(kept):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with pytest.raises(DamagedFile, match=r"a\.png cannot be decoded"):
        pixels_of(png(noise)[:kept])


def test_damaged_video(tmp_path):
    whole = write_video(tmp_path / "clip.mkv", 20).read_bytes()
    for content in (b"", b"no video at all" * 100, whole[:100]):
        (tmp_path / "clip.mkv").write_bytes(content)
        with pytest.raises(DamagedFile, match=r"clip\.mkv"):
            at_rate(tmp_path / "clip.mkv", 8)


def test_video_that_ends_early(tmp_path):
    path = write_video(tmp_path / "clip.mkv", 5, rate=10)
    with path.open("rb") as file, pytest.raises(DamagedFile, match="ends before its time"):
        list(frames_at(read_frames(file, "clip", False), [Fraction(0), Fraction(7, 10)], "clip"))


def test_floating_point_image(tmp_path):
    path = tmp_path / "a.tiff"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    with pytest.raises(DamagedFile, match="floating-point pixels"):
        pixels_of(path)
