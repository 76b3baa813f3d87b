"""A directory tree that somebody hostile may have shaped: nothing reached through it lies outside it.

Paths are resolved one component at a time by descriptors that follow no link (O_NOFOLLOW on a single name), with
links and `..` interpreted here and bounded by the root. That is what openat2's RESOLVE_IN_ROOT does, and in addition it
can make directories that are missing on the way, also behind a link, and knows the real path of where it has come to.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Self

from orlop.errors import Unknown

_LINKS_LIMIT = 255
_CACHE_LIMIT = 256
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

Path = tuple[bytes, ...]
"""A path below the root without links in it: its components."""


def clean(name: bytes) -> Path:
    """The components of `name` as if it began at the root, `.` and `..` taken out as text."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part and part != b".":
            parts.append(part)
    return tuple(parts)


def shown(path: Path) -> str:
    return "/" + b"/".join(path).decode("utf-8", "backslashreplace")


class Tree:
    """Directories below `root`, opened by path; close it."""

    def __init__(self, root: str | bytes) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: dict[Path, int] = {(): self._root}
        self._resolved: dict[Path, Path] = {(): ()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.forget()
        os.close(self._root)

    def forget(self) -> None:
        """Closes what is cached: to be called when a directory or a link has been removed."""
        for path, fd in self._open.items():
            if path:
                os.close(fd)
        self._open = {(): self._root}
        self._resolved = {(): ()}

    def trim(self) -> None:
        """Forgets if much is cached. Descriptors handed out before are no longer valid after it."""
        if len(self._open) > _CACHE_LIMIT or len(self._resolved) > 16 * _CACHE_LIMIT:
            self.forget()

    def resolve(self, path: Path, make: Callable[[Path, int], None] | None = None) -> tuple[Path, int]:
        """The directory that `path` leads to, links followed within the root, and a descriptor of it.

        What is missing is made by `make(path, descriptor of its parent)`; without it FileNotFoundError is raised.
        """
        known = self._resolved.get(path)
        if known is not None and (fd := self._open.get(known)) is not None:
            return known, fd
        at: list[bytes] = []
        ahead = list(reversed(path))
        links = 0
        while ahead:
            part = ahead.pop()
            if part == b"..":
                if at:
                    at.pop()
                continue
            parent = self._directory(tuple(at))
            try:
                self._directory((*at, part), parent)
            except FileNotFoundError:
                if make is None:
                    raise
                make((*at, part), parent)
                self._directory((*at, part), parent)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                target = self._link(part, parent)
                if target is None:
                    raise
                links += 1
                if links > _LINKS_LIMIT:
                    raise Unknown(f"failed to get root path: {shown(path)}: too many links") from error
                if target.startswith(b"/"):
                    at = []
                ahead.extend(piece for piece in reversed(target.split(b"/")) if piece and piece != b".")
                continue
            at.append(part)
        real = tuple(at)
        self._resolved[path] = real
        return real, self._directory(real)

    def _directory(self, path: Path, parent: int | None = None) -> int:
        """A descriptor of the directory at `path`, which has no links in it."""
        fd = self._open.get(path)
        if fd is None:
            if parent is None:
                parent = self._directory(path[:-1])
            fd = self._open[path] = os.open(path[-1], _DIRECTORY, dir_fd=parent)
        return fd

    @staticmethod
    def _link(name: bytes, parent: int) -> bytes | None:
        try:
            return os.readlink(name, dir_fd=parent)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise

    def adopt(self, path: Path, name: bytes, parent: int) -> int:
        """A descriptor of the directory `name` just made or found in `parent`, kept for what comes below it."""
        fd = self._open.get(path)
        if fd is None:
            fd = self._open[path] = os.open(name, _DIRECTORY, dir_fd=parent)
        return fd


def remove(name: bytes, parent: int) -> bool:
    """Removes `name` and all below it; whether that was something else than a plain file. Missing is fine."""
    try:
        os.unlink(name, dir_fd=parent)
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
    empty(name, parent, lambda _: False)
    os.rmdir(name, dir_fd=parent)
    return True


def empty(name: bytes, parent: int, keep: Callable[[Path], bool], path: Path = ()) -> None:
    """Removes what is in the directory `name`, depth first; of what `keep(path)` names, what it does not name inside.

    Deep trees cost no recursion: a descriptor is open for each level only while it has been entered.
    """
    levels = [(os.open(name, _DIRECTORY, dir_fd=parent), path, False)]
    pending = [os.listdir(f"/proc/self/fd/{levels[0][0]}".encode())]
    try:
        while levels:
            fd, here, _ = levels[-1]
            if not pending[-1]:
                pending.pop()
                _, _, disposable = levels.pop()
                os.close(fd)
                if disposable:
                    os.rmdir(here[-1], dir_fd=levels[-1][0])
                continue
            child = pending[-1].pop()
            below = (*here, child)
            kept = keep(below)
            if not stat.S_ISDIR(os.stat(child, dir_fd=fd, follow_symlinks=False).st_mode):
                if not kept:
                    os.unlink(child, dir_fd=fd)
                continue
            levels.append((os.open(child, _DIRECTORY, dir_fd=fd), below, not kept))
            pending.append(os.listdir(f"/proc/self/fd/{levels[-1][0]}".encode()))
    finally:
        for fd, _, _ in levels:
            os.close(fd)


def handle(name: bytes, parent: int) -> int:
    """A descriptor of `name` itself, whatever it is: for its metadata, by `proc_path`."""
    return os.open(name, _HANDLE, dir_fd=parent)


def proc_path(fd: int) -> str:
    """A path that leads to exactly what `fd` is open on, for calls that take no descriptor of O_PATH."""
    return f"/proc/self/fd/{fd}"
