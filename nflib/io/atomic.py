"""The one way to write files whole or not at all, whatever interrupts the writing."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from safetensors import SafetensorError

from nflib.errors import first_line

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PREFIX = ".incomplete-"
PERMISSIONS = ".permissions"
# What a disk says, not a mistake in the block that writes.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextmanager
def complete_folder(folder: str | os.PathLike[str], *, replaces: Sequence[str] = ()) -> Iterator[Path]:
    """Write into a folder whole or not at all: what the block puts into a temporary folder moves up at its end.

    Until then nothing in `folder` changes, nor does it if the block ends by an error. Files and folders of the same
    names are replaced, others stay; all are on the disk before the first one moves. A folder with nothing in common but
    its name is somebody's, and not replaced. Permissions are those of the umask. What a killed run left behind is
    removed by the next one that writes to the same folder, where there are file locks.

    Args:
        folder: made, with its parents, unless it is there.
        replaces: patterns of files that an earlier run wrote: those that the block did not write are then removed.

    Yields:
        The temporary folder.

    Raises:
        OSError: the folder cannot be made or written, or the disk is full; a FileExistsError where a folder of other
            content stands in the way. `folder` then keeps what it had.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with complete_folder(folder) as temporary:
    ...         _ = (temporary / "a.txt").write_text("whole")
    ...     os.listdir(folder)
    ['a.txt']
    """
    folder = Path(folder)
    temporary: Path | None = None
    lock: int | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_left_overs(folder)
        temporary, lock = _make_temporary(folder)
        (temporary / PERMISSIONS).touch()
        yield temporary
        permissions = (temporary / PERMISSIONS).stat().st_mode
        (temporary / PERMISSIONS).unlink()
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                path.chmod(permissions)  # safetensors makes files that their owner alone may read
            _synchronise(path)
        made = sorted(temporary.iterdir())
        for path in made:
            _refuse_other_folder(path, folder / path.name)
        for path in made:
            _replace(path, folder / path.name)
        left = {path for pattern in replaces for path in folder.glob(pattern)} - {folder / path.name for path in made}
        for path in left:
            if path.is_file():
                path.unlink()
        _synchronise(folder)
    except (OSError, SafetensorError, RuntimeError) as error:
        if temporary is None or _is_of_the_disk(error):
            reason = getattr(error, "strerror", None) or first_line(error)
            raise OSError(
                getattr(error, "errno", None) or errno.EIO,
                f"cannot write into {folder} ({reason}), which keeps what it had; make room or choose another folder.",
            ) from error
        raise
    finally:
        _unlock(lock)
        if temporary is not None:
            _remove(temporary)


@contextmanager
def complete_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file whole or not at all: the block writes to a temporary path, which becomes `path` at its end.

    It does not if the block ends by an error. See `complete_folder`.

    Args:
        path: of the file; its folder is made unless it is there.

    Yields:
        The temporary path.

    Raises:
        OSError: as `complete_folder`; an IsADirectoryError, before the block, where `path` is a folder.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with complete_file(f"{folder}/a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     Path(folder, "a.txt").read_text()
    'whole'
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{path} is a folder, which no file replaces; choose a file's name.")
    with complete_folder(path.parent) as temporary:
        yield temporary / path.name


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Raise OSError, as `complete_folder` does, where a folder cannot be made or written: before the work, not after.

    Nothing is left of the attempt.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     check_writable(f"{folder}/new")
    ...     os.listdir(folder)
    []
    """
    folder = Path(folder).resolve()
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    with complete_folder(folder):
        pass
    with suppress(OSError):  # another run may be at work in one of them by now
        for path in new:
            path.rmdir()


@contextmanager
def only_run(folder: str | os.PathLike[str], *, waits: bool = False) -> Iterator[None]:
    """Lock a folder for the block: other processes that call `only_run` for the same folder are refused.

    For runs that go on from what they find in a folder. A killed process loses its lock. Where there are no file locks
    (Windows, some network disks) nobody is refused.

    Args:
        folder: in which the run is at work; made unless it is there.
        waits: wait for another run to end, rather than be refused.

    Raises:
        OSError: another run is at work in the folder, or it cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot make {folder} ({error.strerror}); choose another folder.") from error
    lock, is_taken = _try_lock(folder, waits=waits)
    if is_taken:
        raise OSError(errno.EBUSY, f"another run is at work in {folder}; wait for it, or choose another folder.")
    try:
        yield
    finally:
        _unlock(lock)


def _is_of_the_disk(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in DISK
    # safetensors and torch.save tell of a full disk in words alone.
    return isinstance(error, SafetensorError) or "PytorchStreamWriter" in str(error) or "inline_container" in str(error)


def _refuse_other_folder(source: Path, target: Path) -> None:
    if source.is_dir() and target.is_dir():
        found = set(os.listdir(target))
        if found and found.isdisjoint(os.listdir(source)):
            raise FileExistsError(
                errno.EEXIST,
                f"{target} holds other files ({', '.join(sorted(found)[:3])}), which are not replaced; choose another "
                "folder.",
            )


def _replace(source: Path, target: Path) -> None:
    """Move `source` to `target`; a folder that stands there already is kept until the new one has its name."""
    if target.is_dir() and not target.is_symlink():
        old = source.with_name(PREFIX + source.name)
        os.replace(target, old)
        try:
            os.replace(source, target)
        except OSError:
            os.replace(old, target)
            raise
    else:
        os.replace(source, target)


def _remove(temporary: Path) -> None:
    """Remove a temporary folder, but put a folder back that was about to be replaced by one that never came."""
    for old in temporary.glob(PREFIX + "*"):
        target = temporary.parent / old.name.removeprefix(PREFIX)
        if not target.exists():
            with suppress(OSError):
                os.replace(old, target)
    shutil.rmtree(temporary, ignore_errors=True)


def _make_temporary(folder: Path) -> tuple[Path, int | None]:
    """A new temporary folder and the lock on it, which says for as long as this process lives that it is in use.

    The operating system lets go of the lock when a process is killed.
    """
    while True:
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=PREFIX))
        lock, is_taken = _try_lock(temporary)
        # Another process may have taken it for a left-over before it was locked.
        if temporary.exists() and not is_taken:
            return temporary, lock
        _unlock(lock)


def _remove_left_overs(folder: Path) -> None:
    for temporary in folder.glob(PREFIX + "*"):
        lock, _ = _try_lock(temporary)
        if lock is not None:
            _remove(temporary)
            _unlock(lock)


def _try_lock(folder: Path, *, waits: bool = False) -> tuple[int | None, bool]:
    """A lock on a folder if there can be one, and whether another process holds it, unless this one `waits` for it."""
    if fcntl is None:
        return None, False
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None, False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        return None, isinstance(error, BlockingIOError)
    _held.add(descriptor)
    return descriptor, False


def _unlock(lock: int | None) -> None:
    if lock in _held:
        _held.remove(lock)
        os.close(lock)


def _unlock_all() -> None:
    for lock in list(_held):
        _unlock(lock)


_held: set[int] = set()  # locks of this process
if fcntl is not None:
    # A forked process, such as a worker that loads data, would hold them for as long as it lives.
    os.register_at_fork(after_in_child=_unlock_all)


def _synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    with suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
