"""Image and clip files of known pixels, for the tests of data."""

from __future__ import annotations

import io
import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

STEP = 10


def brightness(number: int) -> int:
    """Of frame `number` of `write_video`."""
    return 20 + STEP * number


def numbers(frames) -> list[int]:
    """Which frames of `write_video` these ``(T, H, W, 3)`` are."""
    return [round((float(np.asarray(frame).mean()) - 20) / STEP) for frame in frames]


def write_video(
    path,
    count=12,
    rate=8,
    size=(32, 32),
    times=None,
    codec="libx264",
    noise=False,
    gop=12,
    aspect=Fraction(1),
    quarters=None,
) -> Path:
    """A video whose frame k is all of brightness(k), or noise; times: of its frames, in 1/1000 s.

    aspect: how many times as wide as high its pixels are. quarters: the levels of all frames' quarters, row by row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "5", "g": str(gop)} if codec == "libx264" else {"g": str(gop)}
        stream.codec_context.sample_aspect_ratio = aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            random = np.random.default_rng(number).integers(0, 256, (*size, 3))
            pixels = (random if noise else np.full((*size, 3), brightness(number))).astype(np.uint8)
            if quarters is not None:
                pixels[:] = np.kron(np.reshape(quarters, (2, 2)), np.ones([side // 2 for side in size]))[..., None]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def gradient(height: int, width: int) -> np.ndarray:
    """Pixels that tell where they are: red the row, green the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, rows + columns], -1).astype(np.uint8)


def write_image(path, pixels=None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(gradient(20, 24) if pixels is None else np.asarray(pixels)).save(path, **options)
    return path


def png(pixels=None) -> bytes:
    file = io.BytesIO()
    Image.fromarray(gradient(20, 24) if pixels is None else pixels).save(file, "png")
    return file.getvalue()


def write_tar(path, members: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return path
