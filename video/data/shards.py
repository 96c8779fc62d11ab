"""Tar shards in WebDataset's convention: the members ``key.png``, ``key.txt``, ``key.cls`` … make one sample."""

from __future__ import annotations

import json
import posixpath
import tarfile
from pathlib import Path
from typing import Any

from nflib.io.tars import read_members
from video.data.metadata import described, nothing_said
from video.data.samples import IMAGES, VIDEOS, Sample, counted

# Descriptions beyond this many bytes are not read.
LARGEST = 1 << 20


def read_shard(path: Path, name: str) -> tuple[list[Sample], list[str]]:
    """The samples of a shard in its order, and sentences on what was left out.

    Members of the same name up to its first dot belong together. ``.txt`` is a caption, ``.cls`` a label, and ``.json``
    may have "text" or "caption", and "label".

    Args:
        path: of the tar file, which is not compressed.
        name: what it is called within its folder.
    """
    media: dict[str, tarfile.TarInfo] = {}
    said: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    unread: list[str] = []
    modified = int(path.stat().st_mtime)
    try:
        for member, read in read_members(path):
            key, suffix = _parts(member.name)
            if not key:
                continue
            if suffix in IMAGES | VIDEOS and key not in media:
                media[key] = member
            elif suffix in (".txt", ".cls", ".json") and member.size <= LARGEST:
                said.setdefault(key, {}).update(_said(suffix, read().decode("utf-8-sig", "replace")))
            else:
                unread.append(member.name)
    except (OSError, tarfile.TarError) as error:
        problems.append(f"{name} is damaged ({error}); read were the {len(media)} images and clips before that.")
    if unread:
        problems.append(f"Not read of {name}, of unknown kind, too long or one more of a sample: {counted(unread)}.")
    lonely = [key for key in said if key not in media]
    if lonely:
        problems.append(f"{name} describes what it does not hold: {counted(lonely, 'sample')}.")
    descriptions = {key: described(columns) for key, columns in said.items()}
    if said and not any(map(any, descriptions.values())):
        problems.append(nothing_said(name))
    samples = [
        Sample(
            f"{name}/{member.name}",
            path,
            member.size,
            modified,
            member.offset_data,
            *descriptions.get(key, described({})),
        )
        for key, member in media.items()
    ]
    return samples, problems


def _parts(name: str) -> tuple[str, str]:
    """The key of a member's name, empty for hidden ones, and the rest of it, in lower case."""
    folder, _, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return (posixpath.join(folder, stem) if stem else ""), (dot + suffix).lower()


def _said(suffix: str, content: str) -> dict[str, Any]:
    if suffix != ".json":
        return {"caption" if suffix == ".txt" else "label": content}
    try:
        columns = json.loads(content)
    except json.JSONDecodeError:
        return {}
    return columns if isinstance(columns, dict) else {}
