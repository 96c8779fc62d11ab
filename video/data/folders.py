"""A user's own folder of images and clips, and what it says of them."""

from __future__ import annotations

import logging
import os
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from video.data.metadata import NAMES, Description, nothing_said, read_metadata
from video.data.samples import CONDITIONS, IMAGES, VIDEOS, Listing, Sample, counted
from video.data.shards import read_shard
from video.text.labels import composed

log = logging.getLogger(__name__)

MEDIA = IMAGES | VIDEOS
CAPTION, SHARD = ".txt", ".tar"
# What takes the place of bytes that are no UTF-8.
LOST = "\ufffd"
# Folders of these names are parts of a data set, not classes.
PARTS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testing"))


def read_folder(folder: str | os.PathLike[str], condition: str = "auto") -> Listing:
    """Read the images and clips in a folder and its subfolders, with their captions or labels.

    Captions and labels come from the first of these that is there:

    - ``metadata.jsonl`` or ``metadata.csv``, there or in a subfolder, with the columns "file_name" and "text" or
      "caption", or "label"; files below it that it does not name are left out,
    - a ``.txt`` beside the file, of its name but for the suffix: its caption,
    - the name of its subfolder, if there are several: its label,
    - in tar shards of WebDataset, ``key.txt``, ``key.cls`` or ``key.json`` beside ``key.png``.

    Names that begin with a dot are passed over. Labels that differ in how their accents are written alone are one.

    Args:
        folder: of files as Pillow or PyAV read them.
        condition: what flows are conditioned on: "caption", "label", "none", or "auto": the first of these that any
            file has.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it that could be read.
        ValueError: damaged metadata, or none of what `condition` asks for.
    """
    if condition not in (*CONDITIONS, "auto"):
        raise ValueError(f"condition must be auto, {', '.join(CONDITIONS[:-1])} or none, got {condition!r}.")
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}; give one of images, clips or tar shards.")
    files = _files(root)
    problems: list[str] = []
    samples = _described(root, files, problems)
    for name in files:
        if _suffix(name) == SHARD:
            members, damages = read_shard(root / name, name)
            samples += members
            problems += damages
    packed = [name for name in files if name.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".parquet"))]
    if packed:
        problems.append(f"Not read, but for unpacking to .tar, .jsonl or .csv: {counted(packed)}.")
    read = {sample.name for sample in samples} | set(packed)
    unknown = [name for name in files if name not in read and not _is_known(name)]
    if unknown:
        problems.append(f"Not read, of unknown kind: {counted(unknown)}.")
    if not samples:
        reasons = " ".join(problems) or "Give one with files such as .png, .jpg, .gif, .mp4 or .tar."
        raise FileNotFoundError(f"{root} has no image, clip or tar shard that could be read. {reasons}")
    samples = [_encodable(sample) for sample in samples]
    problems = [_escaped(problem) for problem in problems]
    samples.sort(key=lambda sample: sample.name)
    return _conditioned(root, samples, condition, problems)


def _files(root: Path) -> list[str]:
    """Names of all files below a folder, but hidden ones; folders that links lead to are read once."""
    files, seen = [], {os.path.realpath(root)}
    for folder, folders, names in os.walk(root, followlinks=True):
        below = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                below.append(name)
        folders[:] = below
        where = Path(folder).relative_to(root)
        files += [(where / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(files)


def _described(root: Path, files: list[str], problems: list[str]) -> list[Sample]:
    """The files that are images or clips, with what is said of each; what is left out is told in `problems`."""
    there = _by_name({name: name for name in files})
    captions = _by_name({_stem(name): name for name in files if _suffix(name) == CAPTION})
    descriptions, governed = _metadata(root, there, problems)
    media = [name for name in files if _suffix(name) in MEDIA]
    unnamed = [name for name in media if name not in descriptions and _is_below(name, governed)]
    if unnamed:
        problems.append(f"Left out, since no metadata names them: {counted(unnamed)}.")
    left_out = set(unnamed)
    plain = [name for name in media if name not in descriptions and name not in left_out]
    labels = _folder_labels(plain)
    for name in plain:
        beside = _found(captions, _stem(name))
        caption = None
        if beside is not None:
            caption = (root / beside).read_text(encoding="utf-8-sig", errors="replace").strip() or None
        descriptions[name] = Description(caption, labels.get(name))
    used = {_found(captions, _stem(name)) for name in (*media, *descriptions)}
    if lonely := [name for name in files if _suffix(name) == CAPTION and name not in used]:
        problems.append(f"Not read, since no image or clip is named as they are: {counted(lonely)}.")
    samples = []
    for name, description in descriptions.items():
        path = root / name
        try:
            status = path.stat()
        except OSError as error:
            problems.append(f"{name} is left out: {error.strerror}.")
            continue
        samples.append(Sample(name, path, status.st_size, int(status.st_mtime), None, *description))
    return samples


def _metadata(root: Path, there: Mapping[str, str], problems: list[str]) -> tuple[dict[str, Description], set[str]]:
    """What metadata say of files that are there, and the folders that have some."""
    descriptions: dict[str, Description] = {}
    governed: set[str] = set()
    for path in sorted(name for name in set(there.values()) if posixpath.basename(name) in NAMES):
        folder = posixpath.dirname(path)
        if folder in governed:
            raise ValueError(f"{root / folder} has both {' and '.join(NAMES)}; keep one of them.")
        governed.add(folder)
        missing, again = [], []
        rows = read_metadata(root / path)
        if rows and not any(any(description) for _, description in rows):
            problems.append(nothing_said(path))
        for name, description in rows:
            wanted = posixpath.normpath(posixpath.join(folder, name))
            found = _found(there, wanted)
            if found is None:
                missing.append(wanted)
            elif found in descriptions:
                again.append(found)
            else:
                descriptions[found] = description
        if missing:
            problems.append(f"{path} names what is not there: {counted(missing)}.")
        if again:
            problems.append(f"{path} names again what was named before, which counts: {counted(again)}.")
    return descriptions, governed


def _by_name(files: dict[str, str]) -> dict[str, str]:
    """By names as they are, and with accents as keyboards write them, which some file systems take apart."""
    return {composed(name): file for name, file in files.items()} | files


def _found(there: Mapping[str, str], name: str) -> str | None:
    """The file of a name, however either writes its accents; None if there is none."""
    return there.get(name, there.get(composed(name)))


def _encodable(sample: Sample) -> Sample:
    """With words that any file can hold; as some file systems take accents apart, a label is one however written."""
    caption, label = sample.caption and _escaped(sample.caption), sample.label and composed(_escaped(sample.label))
    return replace(sample, name=_escaped(sample.name), caption=caption, label=label)


def _escaped(text: str) -> str:
    """With bytes of file names that are no UTF-8, and halves of letters in JSON, as ``\\udce9`` and the like."""
    return text.encode("utf-8", "backslashreplace").decode()


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_known(name: str) -> bool:
    """Whether a file that is no sample is one of those that make or describe samples, or was left out by metadata."""
    return posixpath.basename(name) in NAMES or _suffix(name) in MEDIA | {CAPTION, SHARD}


def _is_below(name: str, folders: set[str]) -> bool:
    while name:
        name = posixpath.dirname(name)
        if name in folders:
            return True
    return False


def _folder_labels(names: Iterable[str]) -> dict[str, str]:
    """The subfolder of each file that is in one; nothing if these are parts of a data set or a single one.

    Where some are nested more deeply than others, the outermost folder counts.
    """
    folders = {name: posixpath.dirname(name).split("/") for name in names if "/" in name}
    is_even = len({len(parts) for parts in folders.values()}) == 1
    labels = {name: parts[-1 if is_even else 0] for name, parts in folders.items()}
    return {} if len(set(labels.values())) < 2 or set(labels.values()) <= PARTS else labels


def _conditioned(root: Path, samples: list[Sample], condition: str, problems: list[str]) -> Listing:
    has = {
        "caption": [sample.caption is not None for sample in samples],
        "label": [sample.label is not None for sample in samples],
        "none": [True for _ in samples],
    }
    if condition == "auto":
        condition = next(name for name in CONDITIONS if any(has[name]))
        log.info("%s: of condition auto, %s is taken.", root, condition)
    elif not any(has[condition]):
        raise ValueError(
            f"nothing in {root} has a {condition}; add metadata.jsonl, a .txt beside each file or a subfolder for each "
            "class, or choose another condition."
        )
    lacking = [sample.name for sample, is_there in zip(samples, has[condition], strict=True) if not is_there]
    if lacking:
        problems.append(f"Without a {condition}, and trained on as unconditional: {counted(lacking)}.")
    garbled = [sample.name for sample in samples if LOST in f"{sample.caption}{sample.label}"]
    if garbled:
        problems.append(f"Described in another encoding than UTF-8, so that letters are lost: {counted(garbled)}.")
    labels = {sample.label for sample in samples if sample.label is not None} if condition == "label" else set()
    is_numbered = all(label.isdecimal() for label in labels)
    classes = sorted(labels, key=(lambda label: (int(label), label)) if is_numbered else None)
    return Listing(root, tuple(samples), condition, tuple(classes), tuple(problems))
