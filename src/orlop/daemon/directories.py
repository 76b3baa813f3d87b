"""The daemon's two directories: their modes, the locks that keep a second daemon out, what is cleaned at start."""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import ExitStack
from pathlib import Path

from orlop.errors import FailedPrecondition

log = logging.getLogger(__name__)

LOCK = "orlop.lock"


def prepare(root: Path, state: Path) -> None:
    """Makes root 0700 (an existing one is narrowed) and state 0711, whatever the umask."""
    _make(root, 0o700)
    root.chmod(0o700)
    if _make(state, 0o711):
        state.chmod(0o711)


def _make(path: Path, mode: int) -> bool:
    if path.is_dir():
        return False
    missing = [parent for parent in path.parents if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        parent.chmod(0o711)
    path.mkdir(mode=mode, exist_ok=True)
    return True


def lock(root: Path, state: Path) -> ExitStack:
    """Takes both directories for this process until the result is closed.

    Raises FailedPrecondition that names the process which has one of them. The lock is the kernel's, on the file
    itself: it holds however the directory is reached, and ends with the process.
    """
    stack = ExitStack()
    try:
        for what, path in (("root", root), ("state", state)):
            descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
                raise FailedPrecondition.verbatim(
                    f"{what} directory {path} is in use by another daemon, pid {owner}"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        stack.close()
        raise
    return stack


def clean_temporary_mounts(root: Path) -> None:
    """Unmounts what a daemon that was killed left mounted under `<root>/tmpmounts`, and removes the directories."""
    temporary = root / "tmpmounts"
    temporary.mkdir(mode=0o700, exist_ok=True)
    temporary.chmod(0o700)
    from orlop.mounts.temporary import TemporaryMounts

    try:
        TemporaryMounts(temporary).cleanup()
    except OSError as error:
        log.warning("cannot clean temporary mounts", extra={"fields": {"path": str(temporary), "error": str(error)}})
