"""File trees of snapshots: how much they hold, and how to remove them.

A workload shaped these trees: they may be deeper than a path can say, change while they are read, and have mounts
inside. So they are walked by descriptor, follow no link and stop at every mount.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress

from orlop.core.snapshot import Usage
from orlop.mounts import syscalls as sc

_MAX_OPEN = 256
"""Levels of a tree that are held open at a time."""

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK


def usage(path: str) -> Usage:
    """Bytes of disk blocks and inodes at and below `path`; what has several names counts once.

    Below 256 levels nothing is counted.
    """
    counted: set[tuple[int, int]] = set()
    size = 0
    for status in _walk(path):
        if (status.st_dev, status.st_ino) not in counted:
            counted.add((status.st_dev, status.st_ino))
            size += status.st_blocks * 512
    return Usage(size, len(counted))


def _walk(path: str) -> Iterator[os.stat_result]:
    fds = [os.open(path, _OPEN | os.O_CLOEXEC)]
    pending: list[list[str]] = []
    try:
        yield os.fstat(fds[0])
        pending.append(os.listdir(fds[0]))
        while fds:
            if not pending[-1]:
                pending.pop()
                os.close(fds.pop())
                continue
            name = pending[-1].pop()
            # Whoever uses the snapshot may remove what was just listed.
            with suppress(FileNotFoundError, NotADirectoryError):
                status = os.lstat(name) if not fds else os.stat(name, dir_fd=fds[-1], follow_symlinks=False)
                yield status
                if len(fds) < _MAX_OPEN and (inner := _open_inside(fds[-1], name)) is not None:
                    fds.append(inner)
                    pending.append(os.listdir(inner))
    finally:
        for fd in fds:
            os.close(fd)


def remove(path: str) -> None:
    """Removes the tree at `path`, which may be missing. Nothing behind a mount inside is touched.

    Raises OSError, after removing what can be removed, where something stays: EBUSY for a mount point.
    """
    try:
        parent = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        with suppress(FileNotFoundError):
            _remove(parent, os.path.basename(path))
    finally:
        os.close(parent)


def _remove(parent: int, name: str) -> None:
    try:
        top = _open_inside(parent, name)
    except NotADirectoryError:
        top = None
    if top is None:
        _unlink(parent, name)
        return
    failed: list[OSError] = []
    try:
        _empty(top, failed)
    finally:
        os.close(top)
    if failed:
        raise failed[0]
    os.rmdir(name, dir_fd=parent)


def _empty(top: int, failed: list[OSError]) -> None:
    """Removes what is in `top`. Deep directories are moved up to `top`, so that no depth is too deep."""
    stack: list[tuple[int, str, list[str]]] = [(os.dup(top), "", os.listdir(top))]
    moved = 0
    try:
        while stack:
            directory, own_name, names = stack[-1]
            if not names:
                stack.pop()
                os.close(directory)
                if stack:
                    _attempt(failed, stack[-1][0], own_name)
                continue
            name = names.pop()
            try:
                if _removed_if_empty(directory, name):
                    continue
                inner = _open_inside(directory, name)
                if inner is None:
                    _unlink(directory, name)
                elif len(stack) < _MAX_OPEN:
                    stack.append((inner, name, os.listdir(inner)))
                else:
                    os.close(inner)
                    moved += 1
                    shallow = f".moved-{moved}-{os.urandom(6).hex()}"
                    os.rename(name, shallow, src_dir_fd=directory, dst_dir_fd=top)
                    stack[0][2].append(shallow)
            except FileNotFoundError:
                continue
            except OSError as error:
                failed.append(error)
    finally:
        for directory, _, _ in stack:
            os.close(directory)


def _removed_if_empty(parent: int, name: str) -> bool:
    """Whether it was an empty directory, as many are, and is gone."""
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError:
        return False
    return True


def _attempt(failed: list[OSError], parent: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        failed.append(error)


def _unlink(parent: int, name: str) -> None:
    os.unlink(name, dir_fd=parent)


def _open_inside(parent: int, name: str) -> int | None:
    """The directory `name` of `parent`; None if it is no directory. Raises OSError (EBUSY) if it is a mount point."""
    try:
        return sc.openat2(parent, name, _OPEN, sc.RESOLVE_NO_XDEV | sc.RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            return None
        if error.errno == errno.EXDEV:
            raise OSError(errno.EBUSY, "something is mounted here", name) from error
        raise
