"""Files of the store: opened without following links, written whole, made durable, and their failures named."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from orlop.errors import DataLoss, NotFound, OrlopError, PermissionDenied, ResourceExhausted, Unknown

DIRECTORY_MODE = 0o755
BLOB_MODE = 0o444
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SYNC_FILE_RANGE_WRITE = 2

_libc = ctypes.CDLL(None, use_errno=True)


def open_file(path: Path, flags: int, mode: int = 0o644) -> int:
    """A descriptor of `path`, which must not be a symbolic link; no child process inherits it."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def make_directory(path: Path) -> bool:
    """Makes `path`, whose parent is there, with the mode of the store whatever the umask. False if it was there."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    path.chmod(DIRECTORY_MODE)
    return True


def sync_directory(path: Path) -> None:
    """What was made, renamed or removed in `path` is durable on return."""
    descriptor = open_file(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, text: str) -> None:
    """Writes the new file `path`. It is not synced."""
    descriptor = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_all(descriptor, text.encode())
    finally:
        os.close(descriptor)


def replace_file(path: Path, text: str) -> None:
    """Writes `path` so that a reader sees the old text or the new one, whole. It is not synced."""
    draft = path.with_name(path.name + ".tmp")
    write_file(draft, text)
    draft.rename(path)


def read_text(path: Path, limit: int = 1 << 20) -> str:
    """The text of a small file."""
    descriptor = open_file(path, os.O_RDONLY)
    try:
        return os.read(descriptor, limit).decode()
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of `data` at the descriptor's position, however short the kernel's writes are."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def start_writeback(descriptor: int) -> None:
    """Lets the kernel begin to write what is dirty of a file (sync_file_range(2)), so that its sync waits less.

    A hint: what fails here shows at the sync.
    """
    _libc.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def empty_directory(path: Path) -> None:
    """Removes the files of a directory that has no others. What is gone already is no error; a missing `path` is."""
    for name in os.listdir(path):
        with contextlib.suppress(FileNotFoundError):
            (path / name).unlink()


@contextlib.contextmanager
def named_failures(path: Path) -> Iterator[None]:
    """Turns an OSError of what is done to `path` into the error that clients are told."""
    try:
        yield
    except OSError as error:
        raise failure(error, path) from error


def failure(error: OSError, path: Path) -> OrlopError:
    """What `error`, met at `path`, is called: a full disk says how full it is."""
    what = f"{path}: {os.strerror(error.errno).lower()}" if error.errno else f"{path}: {error}"
    if error.errno in _FULL:
        return ResourceExhausted(f"{what} ({_free_bytes(path)} bytes free)")
    if error.errno == errno.EIO:
        return DataLoss(what)
    if error.errno == errno.ENOENT:
        return NotFound.verbatim(what)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(what)
    return Unknown(what)


def _free_bytes(path: Path) -> int:
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            space = os.statvfs(place)
            return space.f_bavail * space.f_frsize
    return 0
