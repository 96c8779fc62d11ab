"""A folder as training data: right clips in right batches, and damaged files only counted."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nflib.flows import TARFlow
from nflib.training import TrainingConfig, fit, maximum_likelihood
from nflib.training.data import Preparation, as_source
from nflib.training.validation import mean_loss
from tests.video.files import gradient, numbers, png, write_image, write_tar, write_video
from video.data.dataset import ClipFolder
from video.data.folders import read_folder
from video.data.sizes import Bucket, random_flip


def frames_of(clip):
    """Which frames of `write_video` a clip in -1 … 1 has."""
    return numbers((clip + 1) * 127.5)


@pytest.fixture
def clips(tmp_path):
    """Of mixed sizes, lengths and rates, and a picture."""
    write_video(tmp_path / "a.mp4", 20, rate=8)
    write_video(tmp_path / "b.mkv", 12, rate=16, size=(24, 48))
    write_video(tmp_path / "c.webm", 3, rate=8, codec="libvpx-vp9")
    write_image(tmp_path / "d.png", np.full((16, 16, 3), 20, np.uint8))
    (tmp_path / "a.txt").write_text("a long one")
    return ClipFolder(read_folder(tmp_path), [Bucket(4, 16, 16), Bucket(4, 16, 32), Bucket(1, 16, 16)])


def test_windows_of_the_right_frames(clips):
    assert [(row.bucket, row.sample) for row in clips.rows] == [
        (Bucket(1, 16, 16), 2),
        (Bucket(1, 16, 16), 2),
        (Bucket(1, 16, 16), 2),
        (Bucket(1, 16, 16), 3),
        *[(Bucket(4, 16, 16), 0)] * 5,
        (Bucket(4, 16, 32), 1),
    ]
    batch = clips.clips(torch.tensor([8, 4, 5]))
    assert batch.frames.shape == (3, 4, 3, 16, 16)
    assert [frames_of(clip) for clip in batch.frames] == [[16, 17, 18, 19], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert batch.prompts == ["a long one"] * 3
    assert frames_of(clips.clips(torch.tensor([9])).frames[0]) == [0, 2, 4, 6]
    assert [frames_of(clip) for clip in clips.clips(torch.arange(4)).frames] == [[0], [1], [2], [0]]
    assert clips.skipped == {}


def test_batches_are_of_one_bucket(clips):
    with pytest.raises(ValueError, match="several buckets"):
        clips.clips(torch.tensor([0, 4]))
    for first, shape in ((0, (1, 3, 16, 16)), (4, (4, 3, 16, 16)), (9, (4, 3, 16, 32))):
        batch = as_source(clips).batch(torch.tensor([first, 0, 5, 9]))
        assert batch["inputs"].shape == (4, *shape)
        assert batch.keys() == {"inputs"}


def test_rows_in_the_place_of_others_are_taken_evenly(clips):
    by_shape = clips.by_shape
    taken = torch.cat([by_shape.of_one_shape(torch.tensor([4, index]))[1][1:] for index in range(len(clips))])
    assert taken.bincount(minlength=10)[4:9].tolist() == [2] * 5


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_validation_evaluates_every_row_once(clips, batch_size):
    """A batch of rows of several shapes has those of the first alone, which is not for validation."""

    def mean_of_inputs(batch, generator):
        return batch["inputs"].mean(), {}

    alone = torch.stack([clips.clips(torch.tensor([row])).frames.mean() for row in range(len(clips))])
    fabric = SimpleNamespace(global_rank=0, world_size=1, device="cpu", to_device=lambda batch: batch)
    preparation = Preparation(clips, torch.nn.Linear(1, 1), maximum_likelihood)
    found = mean_loss(mean_of_inputs, preparation, batch_size, 0, fabric)
    assert found == pytest.approx(float(alone.double().mean()), rel=1e-5)


def test_text_becomes_context(clips, tmp_path):
    text = lambda prompts: torch.tensor([[float(len(prompt))] for prompt in prompts])  # noqa: E731
    told = ClipFolder(clips.listing, clips.buckets, text=text)
    assert told.batch(torch.tensor([4, 5]))["context"].tolist() == [[10.0], [10.0]]
    assert told.batch(torch.tensor([3]))["context"].tolist() == [[0.0]]


def test_images_and_labels(tmp_path):
    write_image(tmp_path / "cat/a.png", gradient(20, 32))
    write_image(tmp_path / "dog/b.png", gradient(20, 20)[..., 0])
    write_image(tmp_path / "dog/c.png", np.dstack([gradient(24, 20), np.full((24, 20), 255, np.uint8)]))
    source = ClipFolder(read_folder(tmp_path), [Bucket(1, 20, 20)])
    batch = source.batch(torch.arange(3))
    assert batch["context"].tolist() == [0, 1, 1]
    expected = [gradient(20, 32)[:, 6:26], gradient(20, 20)[..., :1].repeat(3, -1), gradient(24, 20)[2:22]]
    for clip, pixels in zip(batch["inputs"], expected, strict=True):
        assert torch.equal(((clip[0] + 1) * 127.5).round().permute(1, 2, 0), torch.tensor(pixels).float())
    told = ClipFolder(
        source.listing, source.buckets, text=lambda prompts: torch.tensor([list(map(ord, p)) for p in prompts])
    )
    assert told.batch(torch.tensor([2, 0]))["context"].tolist() == [list(map(ord, label)) for label in ("dog", "cat")]
    grey = ClipFolder(source.listing, source.buckets, channels=1)
    assert grey.batch(torch.tensor([1]))["inputs"].shape == (1, 1, 1, 20, 20)


def test_mirrored(tmp_path):
    write_image(tmp_path / "a.png", gradient(16, 16))
    write_video(tmp_path / "b.mp4", 4)
    source = ClipFolder(read_folder(tmp_path), [Bucket(1, 16, 16)], with_mirrored=True)
    assert len(source) == 2 + 8
    clips = source.clips(torch.arange(10)).frames
    assert torch.equal(clips[1], clips[0].flip(-1)) and not torch.equal(clips[1], clips[0])
    assert [frames_of(clip)[0] for clip in clips[2:]] == [0, 1, 2, 3] * 2


def damaged(tmp_path):
    """Ten images, of which one is no image, which shows at once, and two end early, which shows in decoding alone."""
    noise = np.random.default_rng(0)
    for number in range(10):
        write_image(tmp_path / f"{number}.png", noise.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    (tmp_path / "3.png").write_bytes(b"no picture")
    for number in (6, 9):
        path = tmp_path / f"{number}.png"
        path.write_bytes(path.read_bytes()[:300])
    return ClipFolder(read_folder(tmp_path), [Bucket(1, 16, 16)])


def test_damaged_files_are_counted(tmp_path):
    for k in range(10):
        (tmp_path / f"{k}.txt").write_text(f"picture {k}")
    source = damaged(tmp_path)
    assert len(source) == 9
    clips = source.clips(torch.arange(9))
    assert clips.rows.tolist() == [0, 1, 2, 3, 4, 6, 6, 7, 0]
    assert clips.prompts == [f"picture {k}" for k in (0, 1, 2, 4, 5, 7, 7, 8, 0)]  # of what takes the place
    assert torch.equal(clips.frames[5], clips.frames[6]) and torch.equal(clips.frames[8], clips.frames[0])
    assert "Skipped of 10: 3 files (3.png, 6.png, 9.png)." in source.report()
    assert "3.png cannot be decoded (no format that Pillow knows)" in source.report()
    assert dict(source.decoded(range(9))).keys() == {0, 1, 2, 3, 4, 6, 7}


def test_a_clip_cut_off_within(tmp_path):
    """Its header tells of frames that are not there."""
    path = write_video(tmp_path / "a.mp4", 40, size=(64, 64), noise=True)
    content = path.read_bytes()
    start, end = len(content) // 2, len(content) * 3 // 5
    path.write_bytes(content[:start] + bytes(end - start) + content[end:])
    write_video(tmp_path / "b.mp4", 8)
    source = ClipFolder(read_folder(tmp_path), [Bucket(8, 16, 16)])
    clips = source.clips(torch.arange(len(source)))
    assert len(clips.frames) == len(source)
    assert frames_of(clips.frames[-1]) == list(range(8))
    assert source.skipped.keys() == {"a.mp4"}
    assert clips.rows.tolist()[:2] == [0, 1]  # what is whole stays


def test_nothing_can_be_decoded(tmp_path):
    path = write_image(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:300])
    source = ClipFolder(read_folder(tmp_path), [Bucket(1, 16, 16)])
    with pytest.raises(ValueError, match=r"can be decoded any more\. Skipped of 1: 1 file \(a\.png\)"):
        source.clips(torch.tensor([0]))
    with pytest.raises(ValueError, match=r"no file in .* could be used\. Skipped .* has 1 of the 4 frames"):
        len(ClipFolder(source.listing, [Bucket(4, 16, 16)]))


def test_settings(tmp_path):
    write_image(tmp_path / "a.png")
    listing = read_folder(tmp_path)
    with pytest.raises(ValueError, match="need a bucket"):
        ClipFolder(listing, [])
    with pytest.raises(ValueError, match="channels must be 3"):
        ClipFolder(listing, [Bucket(1, 16, 16)], channels=4)
    with pytest.raises(ValueError, match="frame_rate must be positive"):
        ClipFolder(listing, [Bucket(1, 16, 16)], frame_rate=-1)


def test_shards_train_a_flow(tmp_path):
    """A flow on pixels of tar shards, by fit itself, with random flips; run again, it comes out the same."""
    for number in range(2):
        write_tar(
            tmp_path / f"data/{number}.tar",
            {
                f"{k}.{kind}": content
                for k in range(8)
                for kind, content in (("png", png(gradient(8, 8))), ("cls", f"{k % 2}"))
            },
        )
    training, validation = (ClipFolder(part, [Bucket(1, 8, 8)]) for part in read_folder(tmp_path / "data").split(0.25))

    class Frames:
        def __init__(self, source):
            self.source = source

        def __len__(self):
            return len(self.source)

        def batch(self, indices):
            batch = self.source.batch(indices)
            return {"inputs": batch["inputs"].squeeze(1)}

    losses = []
    for run in range(2):
        torch.manual_seed(0)
        flow = TARFlow((3, 8, 8), patch_size=4, channels=16, num_blocks=2, layers_per_block=1, head_dim=16)
        config = TrainingConfig(max_steps=3, batch_size=4, validation_interval=3)
        result = fit(
            flow,
            Frames(training),
            Frames(validation),
            config=config,
            augment=random_flip,
            output=tmp_path / f"run{run}",
        )
        losses.append(result.best_validation_loss)
    assert losses[0] == losses[1]
    assert np.isfinite(losses[0])
