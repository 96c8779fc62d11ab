"""Clips through files and back, and what damaged, empty or odd ones are answered with."""

import weakref

import av
import numpy as np
import pytest
import torch
from PIL import Image

from examples.moving_digits.data import MovingDigits
from tests.nflib.full_disk import full_disk
from tests.video.files import brightness, numbers, write_video
from video.data.decoding import extent, frames_at, read_frames
from video.data.sizes import as_clip, fit_frame
from video.gallery import Entry, write_gallery
from video.media import as_bytes, read_clip, read_image, write_clip

SHAPE = (1, 32, 32)


@pytest.fixture(scope="module")
def clip():
    return MovingDigits("validation", 1, 6).clips().frames[0]


@pytest.mark.parametrize(
    ("suffix", "tolerance"),
    [(".mp4", 0.03), (".mkv", 0.03), (".webm", 0.03), (".gif", 0.01), (".MP4", 0.03), (".GIF", 0.01)],
)
def test_round_trip(clip, tmp_path, suffix, tolerance):
    path = write_clip(clip, tmp_path / f"clip{suffix}", 8.0, enlarge=4)
    back = read_clip(path, SHAPE)
    assert back.shape == clip.shape
    assert float((back - clip).square().mean().sqrt()) < tolerance
    assert read_clip(path).shape == (6, 3, 128, 128)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_colours_of_videos_are_those_written(tmp_path, suffix):
    """In the mean, too: libswscale's own rounding is down, by one level of 255. The matrix is said in the file."""
    row, column = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 96), indexing="ij")
    colours = torch.stack([column, row, -row * column]).expand(2, -1, -1, -1)
    path = write_clip(colours, tmp_path / f"clip{suffix}")
    back = read_clip(path)
    assert abs(float((back - colours).mean())) < 0.3 / 127.5
    assert float((back - colours).square().mean().sqrt()) < 1.5 / 127.5
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (6, 1)


def test_frame_rate_and_codec(clip, tmp_path):
    with av.open(str(write_clip(clip, tmp_path / "clip.mp4", 12.5, codec="mpeg4"))) as container:
        stream = container.streams.video[0]
        assert (float(stream.average_rate), stream.codec_context.name, stream.frames) == (12.5, "mpeg4", 6)


@pytest.mark.parametrize("codec", [None, "libvpx"])
def test_webm(clip, tmp_path, codec):
    path = write_clip(clip, tmp_path / "clip.webm", codec=codec, enlarge=4)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == ("vp9" if codec is None else "vp8")
    assert float((read_clip(path, SHAPE, 8.0) - clip).square().mean().sqrt()) < 0.03


@pytest.mark.parametrize("rate", [8, 15, 24, 29.97, 50])
def test_gifs_keep_their_rate_and_frames(clip, tmp_path, rate):
    still = clip[[0, 0, 0, 1, 1, 0] * 5]  # equal frames, which Pillow would write as one
    path = write_clip(still, tmp_path / "clip.gif", rate)
    with path.open("rb") as file:
        size = extent(file, "clip.gif", True)
        shown = as_clip(list(frames_at(read_frames(file, "clip.gif", True), size.times(rate), "clip.gif")), 1)
    assert (size.frames, float(size.end)) == (30, pytest.approx(30 / rate, abs=0.01))
    for back in (shown, read_clip(path, SHAPE), read_clip(path, SHAPE, rate)):
        torch.testing.assert_close(back, still, atol=2 / 255, rtol=0)
    assert len(read_clip(write_clip(clip[[0] * 4], path, rate), SHAPE, rate)) == 4


def test_what_gifs_cannot_show_is_told(clip, tmp_path, caplog):
    path = write_clip(clip, tmp_path / "clip.gif", 100)
    assert "a GIF cannot show 100 frames a second, but 50" in caplog.text
    assert float(sum(frame.duration for frame in read_frames(path.open("rb"), "clip.gif", True))) == 0.12


@pytest.mark.parametrize("suffix", [".png", ".tif", ".apng", ".tga", ".avif"])
def test_what_is_transparent_is_white_in_all_images(tmp_path, suffix):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / f"a{suffix}")
    assert float(read_image(tmp_path / f"a{suffix}").min()) > 0.98


def test_pictures_are_fitted_as_in_training(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    back = read_image(tmp_path / "a.png", (3, 8, 8))
    torch.testing.assert_close(back, as_clip([fit_frame(pixels, 8, 8)]), atol=0, rtol=0)


def test_no_more_than_a_frame_is_held(clip, tmp_path, monkeypatch):
    path = write_clip(clip, tmp_path / "clip.mp4", 8, enlarge=4)
    held, most = [], []

    def watched(pixels, height, width):
        held.append(weakref.ref(pixels))
        most.append(sum(one() is not None for one in held))
        return fit_frame(pixels, height, width)

    monkeypatch.setattr("video.media.fit_frame", watched)
    assert len(read_clip(path, (1, 48, 48), 8.0)) == len(read_clip(path, (1, 48, 48), 4.0)) * 2 == 6
    assert max(most) <= 2
    monkeypatch.setattr("video.data.decoding.frames_at", None)
    most.clear()
    read_image(path, (1, 48, 48))
    assert len(most) == 1


def test_strip_is_frames_side_by_side(clip, tmp_path):
    strip = np.asarray(Image.open(write_clip(clip, tmp_path / "strip.png")))
    assert strip.shape == (32, 6 * 32, 3)
    assert np.array_equal(strip[:, 64:96], as_bytes(clip)[2])


def test_image_of_one_colour_channel(clip, tmp_path):
    Image.fromarray(as_bytes(clip)[0]).convert("L").save(tmp_path / "frame.png")
    image = read_image(tmp_path / "frame.png", SHAPE)
    assert image.shape == (1, 1, 32, 32)
    torch.testing.assert_close(image, clip[:1], atol=2 / 255, rtol=0)


def test_no_number_is_no_grey(clip, tmp_path):
    spoiled = clip.clone()
    spoiled[0, 0, 3, 3] = float("nan")
    for other, answer in (
        (spoiled, "NaN"),
        (torch.from_numpy(as_bytes(clip)).movedim(-1, 1), "got uint8; of levels 0"),
    ):
        with pytest.raises(ValueError, match=answer):
            write_clip(other, tmp_path / "clip.gif")
    assert not (tmp_path / "clip.gif").exists()
    assert np.array_equal(as_bytes(clip.numpy()), as_bytes(clip))


def test_mistakes(clip, tmp_path):
    path = tmp_path / "clip.mp4"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_clip(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        read_clip(path)
    path.write_bytes(b"no video at all" * 100)
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_clip(path)
    whole = write_clip(clip, tmp_path / "whole.mp4").read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match="damaged"):
        read_clip(path)
    (tmp_path / "frame.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_clip(tmp_path / "frame.png")
    with pytest.raises(ValueError, match="31 × 31: videos have even sizes"):
        write_clip(clip[..., 1:, 1:], path)
    with pytest.raises(ValueError, match="no encoder nonesuch"):
        write_clip(clip, path, codec="nonesuch")
    with pytest.raises(ValueError, match=r"ends in none of \.mp4"):
        write_clip(clip, tmp_path / "clip.doc")
    with pytest.raises(ValueError, match="expected a clip of shape"):
        write_clip(clip[:, :0], path)
    with pytest.raises(ValueError, match="frame_rate must be positive"):
        write_clip(clip, path, 0)
    moving = write_clip(clip, tmp_path / "moving.gif")
    with pytest.raises(ValueError, match="frame_rate must be positive"):
        read_clip(moving, frame_rate=0)


def test_frames_of_other_sizes_are_resized_and_cropped(clip, tmp_path):
    wide = write_clip(clip[..., 8:24, :], tmp_path / "wide.gif")
    twice = clip[..., 8:24, 8:24].repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert float((read_clip(wide, SHAPE) - twice).abs().mean()) < 0.1
    large = write_clip(clip, tmp_path / "large.gif", enlarge=3)
    torch.testing.assert_close(read_clip(large, SHAPE), clip, atol=0.01, rtol=0)
    assert read_clip(large, (1, 64, 64)).shape == (6, 1, 64, 64)


def test_clips_of_another_frame_rate(clip, tmp_path):
    path = write_clip(clip.repeat_interleave(3, 0), tmp_path / "fast.mp4", 24.0, enlarge=4)
    taken = read_clip(path, SHAPE, 8.0)
    assert taken.shape == clip.shape and float((taken - clip).square().mean().sqrt()) < 0.03
    assert len(read_clip(path, SHAPE, 23.0)) == 18  # near enough
    assert len(read_clip(path, SHAPE)) == 18
    rounded = write_clip(clip, tmp_path / "rounded.gif", 8.0)  # GIFs have hundredths of a second
    assert len(read_clip(rounded, SHAPE, 8.0)) == len(clip)
    picture = write_clip(clip[:1], tmp_path / "picture.png")
    assert len(read_clip(picture, SHAPE, 8.0)) == 1


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".gif"])
def test_uneven_frames_are_taken_at_their_times(tmp_path, suffix):
    """As in training, though their mean rate be the one that is wanted."""
    starts = [*range(0, 220, 20), 1355, 1500]  # ms
    path = tmp_path / f"a{suffix}"
    if suffix == ".gif":
        frames = [Image.fromarray(np.full((32, 32, 3), brightness(k), np.uint8)) for k in range(12)]
        durations = np.diff(starts).tolist()
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations)
    else:
        write_video(path, 12, times=starts[:12])
    frames = (read_clip(path, (3, 32, 32), 8) + 1) * 127.5
    assert numbers(frames.movedim(1, -1))[:11] == [0, 6, *[10] * 9]


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.mp4", "a.html"])
def test_a_full_disk_leaves_the_good_file(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"good")
    noise = torch.rand(6, 3, 64, 64) * 2 - 1
    with pytest.raises(OSError, match="keeps what it had; make room"), full_disk(2000):
        if name == "a.html":
            write_gallery([Entry("", noise[:, :1, :16, :16], torch.zeros(6))], path, 8.0)
        else:
            write_clip(noise, path)
    assert path.read_bytes() == b"good"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_left_overs_of_killed_runs_are_removed(clip, tmp_path):
    (tmp_path / ".incomplete-abc").mkdir()
    write_clip(clip, tmp_path / "a.gif")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.gif"]


def test_images_that_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for name in ("large.png", "large.gif"):
        Image.new("1", (20_000, 20_000)).save(tmp_path / name)
    monkeypatch.undo()
    for name in ("large.png", "large.gif"):
        with pytest.raises(ValueError, match="cannot be decoded .*decompression bomb"):
            read_clip(tmp_path / name)
