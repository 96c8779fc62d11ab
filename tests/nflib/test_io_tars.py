"""Tar files that are read front to back: their members, and that an end before the end is told."""

import io
import tarfile

import pytest

from nflib.io.tars import read_members


@pytest.fixture
def tar(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in {"folder/a.txt": b"first", "b.bin": b"2" * 700}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return tmp_path / "a.tar"


def test_members(tar):
    assert [(member.name, read()) for member, read in read_members(tar)] == [
        ("folder/a.txt", b"first"),
        ("b.bin", b"2" * 700),
    ]


@pytest.mark.parametrize(
    ("end", "reason"),
    [(512 * 4 + 100, r"cut off inside b\.bin"), (512 * 3, "damaged or cut off at byte 1536")],
    ids=["inside a member", "between members"],
)
def test_what_ends_too_soon(tar, end, reason):
    tar.write_bytes(tar.read_bytes()[:end])
    members = read_members(tar)
    assert next(members)[1]() == b"first"
    with pytest.raises(tarfile.TarError, match=reason):
        next(members)
