"""Tar files that are read front to back, to an end that is checked."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path


def read_members(path: str | os.PathLike[str]) -> Iterator[tuple[tarfile.TarInfo, Callable[[], bytes]]]:
    """The regular files in an uncompressed tar file, in its order, each with what reads its content.

    Raises:
        OSError, tarfile.TarError: after the members before, where the file cannot be read further: it is damaged or
            cut off.
    """
    size = Path(path).stat().st_size
    with tarfile.open(path, "r:") as archive:

        def read(member: tarfile.TarInfo) -> bytes:
            file = archive.extractfile(member)
            assert file is not None  # of a regular file
            return file.read()

        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # or it remembers every one
            if not member.isreg():
                continue
            if member.offset_data + member.size > size:
                raise tarfile.ReadError(f"cut off inside {member.name}")
            yield member, partial(read, member)
        # A damaged header in the middle looks like the end to tarfile; the real end is a block of zeros.
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"damaged or cut off at byte {archive.offset}")
