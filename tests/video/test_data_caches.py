"""Latents and contexts that are encoded once, in files that may be gone on with and never mistaken for others."""

import json
import multiprocessing
import threading
import time
import weakref

import numpy as np
import pytest
import torch

import video.data.latent_cache as latent_cache
from nflib.io import only_run
from nflib.training.data import as_source
from tests.video import stand_ins
from tests.video.files import write_image, write_video
from tests.video.tiny import tiny_latents
from video.data.cache_folder import open_cache
from video.data.dataset import ClipFolder
from video.data.fingerprints import fingerprint
from video.data.folders import read_folder
from video.data.latent_cache import LatentCache, encode_clip_folder
from video.data.prompt_cache import PromptCache, encode_prompts
from video.data.sizes import Bucket
from video.text.encoders import Words, load_text

BUCKETS = [Bucket(1, 32, 32), Bucket(2, 32, 64)]


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures, one of which ends early, and two clips."""
    random = np.random.default_rng(0)
    for number in range(12):
        write_image(tmp_path / f"data/{number}.png", random.integers(0, 256, (32, 40, 3), dtype=np.uint8))
        (tmp_path / f"data/{number}.txt").write_text(["red", "blue red"][number % 2])
    path = tmp_path / "data/4.png"
    path.write_bytes(path.read_bytes()[:1000])
    (tmp_path / "data/5.png").write_bytes(b"no picture")
    for name in ("a", "b"):
        write_video(tmp_path / f"data/{name}.mp4", 5, size=(32, 64))
    return tmp_path / "data"


def clips_of(folder, buckets=BUCKETS, **settings):
    return ClipFolder(read_folder(folder), buckets, channels=1, **settings)


@pytest.fixture(scope="module")
def latents():
    return tiny_latents()


def test_latents_are_those_of_the_clips(folder, latents, tmp_path):
    clips = clips_of(folder)
    cache = encode_clip_folder(clips, latents, tmp_path / "cache", frames_at_once=3, shard_bytes=4 * 3 * 32)
    assert len(cache) == 10 + 4
    assert [tuple(shape) for shape in cache.shapes] == [(1, 2, 4, 4), (2, 2, 4, 8)]
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 4 + 4  # of three pictures, or a single clip
    expected = {0: clips.clips(torch.arange(11)), 1: clips.clips(torch.arange(11, 15))}
    kept = [row for row in range(11) if clips.rows[row].sample != 6]
    pictures = cache.batch(torch.arange(10))["inputs"]
    torch.testing.assert_close(pictures, latents.encode(expected[0].frames[kept]), atol=1e-5, rtol=1e-5)
    windows = cache.batch(torch.arange(10, 14))["inputs"]
    torch.testing.assert_close(windows, latents.encode(expected[1].frames), atol=1e-5, rtol=1e-5)
    assert cache.samples.tolist() == [clips.rows[row].sample for row in [*kept, *range(11, 15)]]
    assert cache.skipped.keys() == {"4.png", "5.png"}
    assert "Skipped of 14: 2 files" in cache.report()
    assert len(as_source(cache)) == 14


def test_contexts_go_with_their_clips(folder, latents, tmp_path):
    text = Words(["red", "blue"], 2)
    listing = read_folder(folder)
    prompts = [listing.prompt(number) for number in range(len(listing))]
    contexts = encode_prompts(prompts, text, tmp_path / "cache")
    cache = encode_clip_folder(clips_of(folder, text=contexts), latents, tmp_path / "cache")
    batch = cache.batch(torch.arange(10))
    expected = text([listing.prompt(number) for number in cache.samples[:10].tolist()])
    assert torch.equal(batch["context"], expected)
    # A caption that changes takes no clip to be encoded again.
    (folder / "0.txt").write_text("blue")
    listing = read_folder(folder)
    contexts = encode_prompts(["blue"], text, tmp_path / "cache")
    cache = LatentCache(tmp_path / "cache", listing, contexts)
    row = cache.samples.tolist().index(next(n for n, sample in enumerate(listing.samples) if sample.name == "0.png"))
    assert torch.equal(cache.batch(torch.tensor([row]))["context"], text(["blue"]))
    encode_clip_folder(clips_of(folder, text=contexts), latents, tmp_path / "cache")


def test_labels(tmp_path, latents):
    for name in ("cat/a.png", "dog/b.png", "dog/c.png", "z.png"):
        write_image(tmp_path / "data" / name)
    cache = encode_clip_folder(clips_of(tmp_path / "data"), latents, tmp_path / "cache")
    assert cache.batch(torch.arange(4))["context"].tolist() == [0, 1, 1, -1]


def test_encoded_once(folder, latents, tmp_path, monkeypatch):
    first = encode_clip_folder(clips_of(folder), latents, tmp_path / "cache")
    monkeypatch.setattr(latent_cache, "_encoded", None)
    monkeypatch.setattr(ClipFolder, "decoded", None)
    clips = clips_of(folder)
    again = encode_clip_folder(clips, tiny_latents(), tmp_path / "cache")
    assert torch.equal(again.batch(torch.arange(5))["inputs"], first.batch(torch.arange(5))["inputs"])
    assert "rows" not in vars(clips)  # no file was looked into
    assert again.skipped == first.skipped


def test_another_cache_is_refused_or_renewed(folder, latents, tmp_path):
    cache = tmp_path / "cache"
    encode_clip_folder(clips_of(folder), latents, cache)
    (cache / "mine.txt").write_text("a user's")
    with pytest.raises(ValueError, match=r"made with another sizes or rate; remove the folder, or choose another\."):
        encode_clip_folder(clips_of(folder, [Bucket(1, 64, 64)]), latents, cache)
    with pytest.raises(ValueError, match="another autoencoder"):
        encode_clip_folder(clips_of(folder), tiny_latents(3), cache)
    other = tiny_latents()
    other.autoencoder.register_to_config(scaling_factor=3.0)
    with pytest.raises(ValueError, match="another autoencoder"):
        encode_clip_folder(clips_of(folder), other, cache)
    with pytest.raises(ValueError, match="another dtype"):
        encode_clip_folder(clips_of(folder), latents, cache, dtype=torch.bfloat16)
    description = json.loads((cache / latent_cache.DESCRIPTION).read_text())
    del description["version of reading and encoding files"]  # as before there was one
    (cache / latent_cache.DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(
        ValueError, match=r"another version of reading and encoding files; remove the folder, or choose another\."
    ):
        encode_clip_folder(clips_of(folder), latents, cache)
    (folder / "0.png").unlink()
    with pytest.raises(ValueError, match="another set of files"):
        encode_clip_folder(clips_of(folder), latents, cache)
    renewed = encode_clip_folder(clips_of(folder), latents, cache, renew=True)
    assert len(renewed) == 9 + 4
    assert (cache / "mine.txt").is_file()


def test_what_was_begun_in_vain_locks_no_folder(folder, latents, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="in vain"):
        patch.setattr(latents, "encode", lambda frames: (_ for _ in ()).throw(ValueError("in vain")))
        encode_clip_folder(clips_of(folder), latents, tmp_path / "cache")
    assert len(encode_clip_folder(clips_of(folder, [Bucket(1, 64, 64)]), latents, tmp_path / "cache"))


def test_what_was_encoded_stays_after_an_interruption(folder, latents, tmp_path, monkeypatch):
    encoded = latent_cache._encoded
    count = []

    def interrupted(*arguments):
        if len(count) == 3:
            raise KeyboardInterrupt
        count.append(1)
        return encoded(*arguments)

    settings = {"shard_bytes": 4 * 3 * 32}
    whole = encode_clip_folder(clips_of(folder), latents, tmp_path / "whole", **settings)
    monkeypatch.setattr(latent_cache, "_encoded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_clip_folder(clips_of(folder), latents, tmp_path / "cache", **settings)
    with pytest.raises(FileNotFoundError, match="or not all of them"):
        LatentCache(tmp_path / "cache", read_folder(folder))
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.safetensors")}
    assert len(times) == 3
    monkeypatch.setattr(latent_cache, "_encoded", encoded)
    cache = encode_clip_folder(clips_of(folder), latents, tmp_path / "cache", **settings)
    assert times.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}.items()
    assert torch.equal(cache.batch(torch.arange(10))["inputs"], whole.batch(torch.arange(10))["inputs"])
    assert (cache.skipped, len(cache)) == (whole.skipped, len(whole))


def encode_slowly(folder, cache):
    encoded = latent_cache._encoded

    def slowly(*arguments):
        time.sleep(0.5)
        return encoded(*arguments)

    latent_cache._encoded = slowly
    encode_clip_folder(clips_of(folder), tiny_latents(), cache, shard_bytes=4 * 3 * 32)


def test_killed(folder, latents, tmp_path):
    cache = tmp_path / "cache"
    run = multiprocessing.get_context("spawn").Process(target=encode_slowly, args=(folder, cache))
    run.start()
    try:
        while not list(cache.glob("*.safetensors")):
            assert run.is_alive()
            time.sleep(0.05)
    finally:
        run.kill()
        run.join()
    assert 1 <= len(list(cache.glob("*.safetensors"))) < 8
    went_on = encode_clip_folder(clips_of(folder), latents, cache, shard_bytes=4 * 3 * 32)
    whole = encode_clip_folder(clips_of(folder), latents, tmp_path / "whole", shard_bytes=4 * 3 * 32)
    assert torch.equal(went_on.batch(torch.arange(10))["inputs"], whole.batch(torch.arange(10))["inputs"])
    assert sorted(path.name for path in cache.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())


def test_one_run_at_a_time(folder, latents, tmp_path):
    with only_run(tmp_path / "cache"), pytest.raises(OSError, match="another run is at work"):
        encode_clip_folder(clips_of(folder), latents, tmp_path / "cache")


def test_damaged_cache(folder, latents, tmp_path):
    cache = tmp_path / "cache"
    encode_clip_folder(clips_of(folder), latents, cache)
    path = next(cache.glob("*.safetensors"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"latents-00000\.safetensors is damaged"):
        encode_clip_folder(clips_of(folder), latents, cache)
    (cache / "latents-complete.json").write_text("[")
    with pytest.raises(ValueError, match=r"latents-complete\.json is damaged"):
        encode_clip_folder(clips_of(folder), latents, cache)
    (cache / "latents.json").write_text("[")
    with pytest.raises(ValueError, match=r"latents\.json is damaged"):
        encode_clip_folder(clips_of(folder), latents, cache)
    assert len(encode_clip_folder(clips_of(folder), latents, cache, renew=True)) == 14


def test_prompts_are_encoded_once(tmp_path):
    words, asked = Words(["red", "blue"], 2), []

    class Asked(Words):
        def __call__(self, prompts):
            asked.extend(prompts)
            return super().__call__(prompts)

    text = Asked(["red", "blue"], 2)
    cache = encode_prompts(["red", "blue", "red"] * 5, text, tmp_path, batch_size=2, shard_bytes=8 * 3 * 2)
    assert sorted(asked) == ["", "blue", "red"]
    assert torch.equal(cache(["blue", "", "red", "blue"]), words(["blue", "", "red", "blue"]))
    encode_prompts(["red", "blue red"], text, tmp_path, batch_size=2)
    assert asked[3:] == ["blue red"]
    assert torch.equal(PromptCache(tmp_path)(["blue red"]), words(["blue red"]))
    with pytest.raises(ValueError, match="another encoder; remove the folder"):
        encode_prompts(["red"], Asked(["red", "green"], 2), tmp_path)
    cache = encode_prompts(["green"], Asked(["red", "green"], 2), tmp_path, renew=True)
    assert "blue" not in cache and "green" in cache


def test_a_damaged_file_of_prompts_is_made_again(tmp_path):
    text = Words(["red", "blue"], 2)
    for prompt in ("red", "blue", "red blue"):
        encode_prompts([prompt], text, tmp_path)
    path = tmp_path / "prompts-00001.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"prompts-00001\.safetensors is damaged .* remove it"):
        PromptCache(tmp_path)
    path.unlink()
    cache = encode_prompts(["blue"], text, tmp_path)
    assert torch.equal(cache(["red", "blue", "red blue"]), text(["red", "blue", "red blue"]))


def test_fingerprints(latents):
    assert fingerprint(latents) == fingerprint(tiny_latents())
    moved = tiny_latents()
    moved.batch_size = 3
    assert fingerprint(moved.train()) == fingerprint(latents)
    with torch.no_grad():
        next(moved.parameters()).view(-1)[0] += 1e-3
    others = [moved, tiny_latents().to(torch.bfloat16), tiny_latents(3)]
    assert len({fingerprint(part) for part in [latents, *others]}) == 4


@pytest.mark.parametrize("embeddings_only", [True, False])
def test_fingerprints_know_tokenizers_and_embeddings(tmp_path, embeddings_only):
    """A prompt cached for one vocabulary, side of padding or table of embeddings is not another's."""
    folder = stand_ins.save_t5(tmp_path)

    def own():
        return load_text(folder, 3, embeddings_only=embeddings_only)

    text = own()
    first = fingerprint(text)
    text(["a red fox in snow"])  # which a tokenizer remembers the length of
    assert fingerprint(text) == first == fingerprint(own())
    left, other, changed = own(), own(), own()
    left.tokenizer.padding_side = "left"
    other.tokenizer.add_tokens(["wolf"])
    weight = changed.weight if embeddings_only else changed.encoder.get_input_embeddings().weight
    with torch.no_grad():
        weight[3] += 1
    assert len({first, *map(fingerprint, (left, other, changed))}) == 4


def test_memory_while_encoding(folder, latents, tmp_path, monkeypatch):
    """What is written is let go of: of all files, one at a time is there."""
    alive = []
    encoded = latent_cache._encoded

    def watched(*arguments):
        assert not any(reference() is not None for reference in alive)
        tensors, skipped = encoded(*arguments)
        alive.append(weakref.ref(tensors["latents"]))
        return tensors, skipped

    monkeypatch.setattr(latent_cache, "_encoded", watched)
    encode_clip_folder(clips_of(folder), latents, tmp_path / "cache", shard_bytes=4 * 3 * 32)
    assert len(alive) == 8


def test_processes_of_one_run_wait_for_a_cache(tmp_path, monkeypatch):
    """Under torchrun the second to come waits, and finds what the first one made."""
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    seen = []

    def second():
        with open_cache(tmp_path, "made.json", {"of": "a"}, "*.txt", False):
            seen.append((tmp_path / "made.txt").read_text())

    with open_cache(tmp_path, "made.json", {"of": "a"}, "*.txt", False):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        (tmp_path / "made.txt").write_text("whole")
    thread.join(10)
    assert seen == ["whole"]
