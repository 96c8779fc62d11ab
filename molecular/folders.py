"""Output folders: made with a clear error, and filled whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def make_folder(path: str | Path) -> Path:
    """Make a folder, and its parents, unless it is there. Raises OSError where it cannot be made or written to."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(f"cannot write to the folder {path} ({error.strerror}); choose another output folder.") from error
    return path


@contextmanager
def complete_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder inside `path`, whose files move up once the block has ended without an error.

    Raises OSError where `path` cannot be written, before the block begins.
    """
    path = make_folder(path)
    with tempfile.TemporaryDirectory(dir=path, prefix=".partial-") as temporary:
        yield Path(temporary)
        for file in sorted(Path(temporary).iterdir()):
            os.replace(file, path / file.name)
