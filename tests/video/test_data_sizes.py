"""Buckets, and crops that are exact."""

import math

import numpy as np
import pytest
import torch

from tests.video.files import gradient
from video.data.sizes import Bucket, as_clip, buckets, fit_frame, nearest_bucket, random_flip


@pytest.mark.parametrize("size", [(20, 32), (21, 32), (32, 21), (32, 20)])
def test_crop_is_exact(size):
    frame = gradient(*size)
    side = min(size)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    assert np.array_equal(fit_frame(frame, side, side), frame[top : top + side, left : left + side])


def test_shrinking_averages():
    """Stripes of one pixel become grey, not one of the stripes."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    small = fit_frame(stripes, 16, 16)
    assert abs(small.astype(int)[:, 2:-2] - 100).max() <= 2


@pytest.mark.parametrize(("height", "width"), [(7, 5), (64, 48), (33, 200), (16, 16), (1, 1)])
def test_any_size_is_covered(height, width):
    assert fit_frame(gradient(20, 24), height, width).shape == (height, width, 3)


def test_centre_is_kept():
    """A linear ramp stays one: the middle of the crop is the middle of the frame, whatever the scale."""
    frame = np.broadcast_to(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], (60, 120, 3))
    fitted = fit_frame(frame, 30, 30).astype(float)
    assert abs(fitted[:, 4:-4].mean() - 119) < 0.5
    assert np.allclose(np.diff(fitted[0, 4:-4, 0]), 4, atol=1)
    assert np.array_equal(fit_frame(frame.transpose(1, 0, 2), 30, 30).astype(float), fitted.transpose(1, 0, 2))


def test_buckets_have_about_the_area():
    shapes = buckets(256, 256, 32, (17, 1), 2.0)
    assert shapes[0] == Bucket(1, 256, 256)
    assert {bucket.frames for bucket in shapes} == {1, 17}
    for bucket in shapes:
        assert bucket.height % 32 == bucket.width % 32 == 0
        assert abs(bucket.height * bucket.width / 256**2 - 1) < 0.15
        assert max(bucket.height / bucket.width, bucket.width / bucket.height) <= 2
    turned = {(frames, width, height) for frames, height, width in shapes}
    assert turned == set(shapes)


def test_buckets_of_one_shape():
    assert buckets(32, 48, 16, (4,)) == [Bucket(4, 32, 48)]
    with pytest.raises(ValueError, match="multiples of 16, got 30 × 48"):
        buckets(30, 48)


def test_nearest_bucket():
    choices = buckets(256, 256, 32, (1, 9), 2.0)
    frames, height, width = nearest_bucket(choices, 100, 1080, 1920)
    assert frames == 9
    assert abs(math.log(width / height * 9 / 16)) == min(abs(math.log(w / h * 9 / 16)) for _, h, w in choices)
    assert nearest_bucket(choices, 8, 500, 500) == Bucket(1, 256, 256)
    assert nearest_bucket([Bucket(9, 32, 32)], 8, 500, 500) is None
    # By the ratio of aspect ratios: 1 : 2.2 is nearer to 1 : 4 than to 1 : 1, lying or standing.
    for shape in ((32, 128), (128, 32)):
        height, width = (220 if side == 128 else 100 for side in shape)
        assert nearest_bucket([Bucket(1, 64, 64), Bucket(1, *shape)], 1, height, width)[1:] == shape


def test_levels():
    frame = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    assert as_clip([frame]).tolist() == [[[[-1, 1]], [[-1, 1]], [[-1, 1]]]]
    assert as_clip([frame], 1).tolist() == [[[[-1, 1]]]]


def test_flips_are_some_and_repeat():
    clips = torch.randn(64, 2, 3, 4, 5)
    flipped = random_flip(clips, torch.Generator().manual_seed(1))
    same = (flipped == clips).flatten(1).all(1)
    mirrored = (flipped == clips.flip(-1)).flatten(1).all(1)
    assert torch.equal(same, ~mirrored)
    assert 16 < int(same.sum()) < 48
    assert torch.equal(flipped, random_flip(clips, torch.Generator().manual_seed(1)))
