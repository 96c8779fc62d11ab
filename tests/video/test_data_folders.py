"""What is read from a user's folder, and what is said of it."""

import json
import math
import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from tests.video.files import png, write_image, write_tar, write_video
from video.data.dataset import ClipFolder
from video.data.decoding import read_frames
from video.data.folders import read_folder
from video.data.sizes import Bucket


def names(listing):
    return [sample.name for sample in listing.samples]


def captions(listing):
    return [sample.caption for sample in listing.samples]


def test_class_folders(tmp_path):
    for name in ("dog/b.png", "cat/a.JPG", "dog/a.png", "dog/.hidden.png", ".git/x.png"):
        write_image(tmp_path / name, format="png")
    listing = read_folder(tmp_path)
    assert names(listing) == ["cat/a.JPG", "dog/a.png", "dog/b.png"]
    assert (listing.condition, listing.classes, listing.problems) == ("label", ("cat", "dog"), ())
    assert [listing.class_number(number) for number in range(3)] == [0, 1, 1]
    assert listing.prompt(0) == "cat"


@pytest.mark.parametrize("name", ["a.tif", "a.TGA", "a.jpf", "a.qoi", "a.mpo", "a.vob", "a.m2ts", "a.mxf", "a.3g2"])
def test_what_can_be_read_is_read(tmp_path, name):
    path, is_video = tmp_path / name, name in ("a.vob", "a.m2ts", "a.mxf", "a.3g2")
    if is_video:
        write_video(path, codec="mpeg4" if name == "a.3g2" else "mpeg2video", size=(64, 64), rate=25)
    else:
        write_image(path)
    listing = read_folder(tmp_path)
    assert (names(listing), listing.problems) == ([name], ())
    with listing.samples[0].open() as file:
        assert len(list(read_frames(file, name, listing.samples[0].is_image))) == (12 if is_video else 1)


def test_what_is_of_unknown_kind_is_told(tmp_path):
    for name in ("a.png", "b.heic", "doc.pdf", "c.png", "named"):
        write_image(tmp_path / name, format="png")
    for name in ("a.txt", ".DS_Store"):
        (tmp_path / name).write_text("a seven")
    assert read_folder(tmp_path).problems[0] == "Not read, of unknown kind: 3 files (b.heic, doc.pdf, named)."
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\nnamed,y\nc.png,z")
    assert read_folder(tmp_path).problems == ("Not read, of unknown kind: 2 files (b.heic, doc.pdf).",)
    for name in ("a.png", "c.png", "named", "metadata.csv"):
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"of unknown kind: 2 files \(b\.heic, doc\.pdf\)"):
        read_folder(tmp_path)


def test_captions_of_any_case_and_those_of_nothing(tmp_path):
    for name in ("a.JPG", "b.jpg", "c.png", "sub/named.png"):
        write_image(tmp_path / name, format="png")
    for name in ("a.TXT", "b.jpg.txt", "c.txt", "sub/named.txt", "read me.txt"):
        (tmp_path / name).write_text(f"of {name}")
    (tmp_path / "sub/metadata.csv").write_text("file_name,text\nnamed.png,a seven")
    write_tar(tmp_path / "D.TAR", {"0.png": png(), "0.txt": "in a shard"})
    listing = read_folder(tmp_path)
    assert dict(zip(names(listing), captions(listing), strict=True)) == {
        "D.TAR/0.png": "in a shard",
        "a.JPG": "of a.TXT",
        "b.jpg": None,
        "c.png": "of c.txt",
        "sub/named.png": "a seven",
    }
    told = "Not read, since no image or clip is named as they are: 2 files (b.jpg.txt, read me.txt)."
    assert listing.problems[0] == told and len(listing.problems) == 2


@pytest.mark.parametrize(
    ("files", "labels"),
    [
        (["train/dog/a.png", "train/cat/a.png"], ["cat", "dog"]),
        (["dog/a.png", "dog/more/a.png", "cat/a.png"], ["cat", "dog", "dog"]),
        (["images/a.png", "images/b.png"], [None, None]),
        (["train/a.png", "test/a.png"], [None, None]),
        (["dog/a.png", "cat/a.png", "z.png"], ["cat", "dog", None]),
    ],
)
def test_which_folders_are_labels(tmp_path, files, labels):
    for name in files:
        write_image(tmp_path / name)
    assert [sample.label for sample in read_folder(tmp_path).samples] == labels


def test_what_has_no_label_is_counted(tmp_path):
    for name in ("dog/a.png", "cat/a.png", "z.png"):
        write_image(tmp_path / name)
    listing = read_folder(tmp_path)
    assert listing.class_number(2) == -1
    assert "Without a label" in listing.problems[0] and "1 file (z.png)" in listing.problems[0]


def test_numbers_are_in_their_order(tmp_path):
    for name in ("10", "9", "2"):
        write_image(tmp_path / name / "a.png")
    assert read_folder(tmp_path).classes == ("2", "9", "10")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata(tmp_path, kind):
    for name in ("a.png", "b.png", "sub/c.mp4", "left.png"):
        write_image(tmp_path / name, format="png")
    rows = [
        ("./a.png", "a seven, red; and “round”"),
        ("sub/c.mp4", "ein Höhe"),
        ("b.png", ""),
        ("gone.png", "x"),
        ("a.png", "y"),
    ]
    if kind == "jsonl":
        text = "\n\n".join(json.dumps({"file_name": name, "text": said}) for name, said in rows)
    else:
        text = "\ufefffile_name,caption\n" + "".join(f'{name},"{said}"\n' for name, said in rows)
    (tmp_path / f"metadata.{kind}").write_text(text, encoding="utf-8")
    listing = read_folder(tmp_path)
    assert names(listing) == ["a.png", "b.png", "sub/c.mp4"]
    assert captions(listing) == ["a seven, red; and “round”", None, "ein Höhe"]
    assert listing.condition == "caption"
    told = " ".join(listing.problems)
    assert "names what is not there: 1 file (gone.png)" in told
    assert "before, which counts: 1 file (a.png)" in told
    assert "no metadata names them: 1 file (left.png)" in told
    assert "Without a caption, and trained on as unconditional: 1 file (b.png)" in told


@pytest.mark.parametrize("on_disk, told", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_with_accents_taken_apart(tmp_path, on_disk, told):
    """As macOS's archives have names, and metadata from a keyboard: the same letters, of other bytes."""
    for name in ("ü/é.png", "é.png"):
        write_image(tmp_path / unicodedata.normalize(on_disk, name))
    (tmp_path / unicodedata.normalize(told, "é.txt")).write_text("beside")
    metadata = tmp_path / unicodedata.normalize(on_disk, "ü") / "metadata.csv"
    metadata.write_text(unicodedata.normalize(told, "file_name,text\né.png,below\n"), encoding="utf-8")
    listing = read_folder(tmp_path)
    assert captions(listing) == ["beside", "below"] and not listing.problems
    assert all(sample.path.is_file() for sample in listing.samples)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode")
def test_names_that_are_no_unicode(tmp_path):
    """As archives of other systems have them: trained on as any, and told so that every file can hold the words."""
    for letter in (b"\xe9", b"\xe8"):
        folder = os.path.join(os.fsencode(tmp_path), b"caf" + letter)
        os.mkdir(folder)
        for name in (letter + b".png", b"b.png", letter + b".unknown"):
            Path(os.fsdecode(os.path.join(folder, name))).write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    listing = read_folder(tmp_path)
    assert listing.classes == ("caf\\udce8", "caf\\udce9") and "\\udce8.unknown" in listing.problems[0]
    training, validation = listing.split(0.5)
    assert len(training) + len(validation) == 4
    assert len(dict(ClipFolder(listing, [Bucket(1, 8, 8)]).decoded(range(4)))) == 4


def test_one_class_whose_name_is_written_in_two_ways(tmp_path):
    for number, (label, form) in enumerate([("Café", "NFC"), ("Café", "NFD"), ("Bar", "NFC")]):
        write_image(tmp_path / unicodedata.normalize(form, label) / f"{number}.png")
    listing = read_folder(tmp_path)
    assert listing.classes == ("Bar", "Caf\u00e9") and sorted(map(listing.class_number, range(3))) == [0, 1, 1]
    lines = [
        json.dumps({"file_name": f"{form}.png", "label": unicodedata.normalize(form, "é")}) for form in ("NFC", "NFD")
    ]
    for form in ("NFC", "NFD"):
        write_image(tmp_path / f"told/{form}.png")
    (tmp_path / "told/metadata.jsonl").write_text("\n".join(lines))
    assert read_folder(tmp_path / "told").classes == ("\u00e9",)


def test_metadata_as_pandas_and_caption_sets_write_it(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        write_image(tmp_path / name)
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,10.0\nb.png,2.0\nc.png,\n")
    listing = read_folder(tmp_path)
    assert (listing.classes, [sample.label for sample in listing.samples]) == (("2", "10"), ["10", "2", None])
    (tmp_path / "metadata.csv").unlink()
    rows = [("a.png", ["", "a seven", "7"], 1.0), ("b.png", {"en": "x"}, 2.5), ("c.png", [], math.nan)]
    (tmp_path / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": name, "text": text, "label": label}) for name, text, label in rows)
    )
    listing = read_folder(tmp_path)
    assert captions(listing) == ["a seven", None, None]
    assert [sample.label for sample in listing.samples] == ["1", "2.5", None]


def test_metadata_that_say_nothing_are_told_of(tmp_path, caplog):
    caplog.set_level("INFO")
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    (tmp_path / "metadata.csv").write_text("file_name,class_name\na.png,cat\nb.png,dog\n")
    write_tar(tmp_path / "0.tar", {"0.png": png(), "0.json": '{"class_name": 3}'})
    listing = read_folder(tmp_path)
    told = "has nothing of its files in text, caption, prompt or label"
    assert [problem.partition(":")[0] for problem in listing.problems] == [f"metadata.csv {told}", f"0.tar {told}"]
    assert listing.condition == "none"
    assert f"{tmp_path}: of condition auto, none is taken." in caplog.text


def test_metadata_of_subfolders(tmp_path):
    for part in ("one", "two"):
        write_image(tmp_path / part / "a.png")
        (tmp_path / part / "metadata.jsonl").write_text(
            json.dumps({"file_name": "a.png", "label": part == "two", "n": 1})
        )
    (tmp_path / "two/metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "label": 3}))
    (tmp_path / "one/metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "label": 11}))
    listing = read_folder(tmp_path)
    assert (listing.condition, listing.classes) == ("label", ("3", "11"))
    assert [listing.class_number(number) for number in range(2)] == [1, 0]


def test_text_beside(tmp_path):
    for name in ("x/a.png", "y/b.png", "y/c.png"):
        write_image(tmp_path / name)
    (tmp_path / "x/a.txt").write_text("a seven; moving\n")
    (tmp_path / "y/b.txt").write_bytes("naïve".encode("latin-1"))
    listing = read_folder(tmp_path)
    assert listing.condition == "caption"
    assert captions(listing) == ["a seven; moving", "na\ufffdve", None]
    assert any("another encoding than UTF-8" in problem and "(y/b.png)" in problem for problem in listing.problems)
    assert [listing.prompt(number) for number in (0, 2)] == ["a seven; moving", ""]
    assert read_folder(tmp_path, "label").classes == ("x", "y")
    assert read_folder(tmp_path, "none").prompt(0) == ""


def test_shards(tmp_path):
    video = write_video(tmp_path / "c.mp4").read_bytes()
    (tmp_path / "c.mp4").unlink()
    contents = [png(), png()[:-1] + b"\0"]
    members = {
        "000.png": contents[0],
        "000.txt": "a seven",
        "dir/001.cls": "4",
        "dir/001.json": json.dumps({"caption": "an eight", "other": [1]}),
        "dir/001.png": contents[1],
        "long" * 40 + ".mp4": video,
        "._000.png": b"junk",
        "lonely.txt": "of nothing",
        "000.npy": b"\0",
        "000.mask.png": contents[0],
        "000.jpg": contents[0],
    }
    write_tar(tmp_path / "shards/0.tar", members)
    listing = read_folder(tmp_path)
    assert names(listing) == ["shards/0.tar/000.png", "shards/0.tar/dir/001.png", f"shards/0.tar/{'long' * 40}.mp4"]
    assert captions(listing) == ["a seven", "an eight", None]
    assert listing.samples[1].label == "4"
    assert "one more of a sample: 3 files (000.npy, 000.mask.png, 000.jpg)" in listing.problems[0]
    assert "describes what it does not hold: 1 sample (lonely)" in listing.problems[1]
    for sample, content in zip(listing.samples, [*contents, video], strict=True):
        with sample.open() as file:
            assert file.read() == content
    with listing.samples[2].open() as file:
        assert len(list(read_frames(file, "clip", False))) == 12


def test_damaged_shard(tmp_path):
    whole = write_tar(tmp_path / "a.tar", {"0.png": png(), "1.png": png(), "2.png": png()}).read_bytes()
    for size in (1024, 1024 + 100, 1024 + 520):
        (tmp_path / "a.tar").write_bytes(whole[:size])
        listing = read_folder(tmp_path)
        assert names(listing) == ["a.tar/0.png"]
        assert "a.tar is damaged" in listing.problems[0]
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(FileNotFoundError, match=r"has no image, clip or tar shard .* a\.tar is damaged"):
        read_folder(tmp_path)


def test_links(tmp_path):
    write_image(tmp_path / "elsewhere/a.png")
    (tmp_path / "data").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "data/linked")
    os.symlink(tmp_path / "data", tmp_path / "data/round")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "data/broken.png")
    listing = read_folder(tmp_path / "data")
    assert names(listing) == ["linked/a.png"]
    assert "broken.png is left out" in listing.problems[0]


def test_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has no image, clip or tar shard"):
        read_folder(tmp_path)
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"Not read, but for unpacking .* 1 file \(a\.tar\.gz\)"):
        read_folder(tmp_path)
    write_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match="condition must be auto"):
        read_folder(tmp_path, "labels")
    with pytest.raises(ValueError, match="has a caption; add metadata"):
        read_folder(tmp_path, "caption")
    (tmp_path / "metadata.jsonl").write_text('{"file": "a.png"}')
    with pytest.raises(ValueError, match="line 1 of .* names no file"):
        read_folder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file')
    with pytest.raises(ValueError, match="line 2 of .* is no JSON"):
        read_folder(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name\na.png")
    with pytest.raises(ValueError, match=r"has both metadata\.jsonl and metadata\.csv"):
        (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}')
        read_folder(tmp_path)


def test_split_stays_when_files_come(tmp_path):
    for number in range(40):
        write_image(tmp_path / f"{number}.png")
    training, validation = read_folder(tmp_path).split(0.25)
    assert len(training) + len(validation) == 40
    assert 4 <= len(validation) <= 16
    for number in range(40, 60):
        write_image(tmp_path / f"{number}.png")
    (tmp_path / "7.png").unlink()
    later, held_out = read_folder(tmp_path).split(0.25)
    assert set(names(later)) & set(names(validation)) == set(names(held_out)) & set(names(training)) == set()


@pytest.mark.parametrize("share", [1e-6, 1 - 1e-6])
def test_no_part_is_empty(tmp_path, share):
    for number in range(3):
        write_image(tmp_path / f"{number}.png")
    parts = read_folder(tmp_path).split(share)
    assert sorted(map(len, parts)) == [1, 2]


def test_split_takes_two(tmp_path):
    write_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a single image"):
        read_folder(tmp_path).split()
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        read_folder(tmp_path).split(1.0)


def test_fingerprint_is_of_the_files(tmp_path):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png")
    first = read_folder(tmp_path).fingerprint()
    (tmp_path / "a.txt").write_text("a caption")
    assert read_folder(tmp_path).fingerprint() == first
    os.utime(tmp_path / "a.png", (1, 1))
    assert read_folder(tmp_path).fingerprint() != first
