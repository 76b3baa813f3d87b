"""What overlayfs itself copies up, when a layer takes something for granted that is in a layer below."""

from __future__ import annotations

import errno
import os
import stat

from orlop.layers import tree

_PIECE = 1 << 24
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_entry(name: bytes, source: int, target: int) -> None:
    """Copies what `name` is in the directory `source`, no directory, to the directory `target`, which has it not."""
    found = tree.handle(name, source)
    try:
        status = os.fstat(found)
        if stat.S_ISREG(status.st_mode):
            _copy_file(tree.proc_path(found), name, target)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(b"", dir_fd=found), name, dir_fd=target)
        else:
            os.mknod(name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=target)
        made = tree.handle(name, target)
        try:
            copy_metadata(tree.proc_path(found), tree.proc_path(made), status)
        finally:
            os.close(made)
    finally:
        os.close(found)


def _copy_file(source: str, name: bytes, target: int) -> None:
    file = os.open(source, _OPEN & ~os.O_NOFOLLOW)
    try:
        made = os.open(name, _NEW_FILE, 0o600, dir_fd=target)
        try:
            while os.sendfile(made, file, None, _PIECE):
                pass
        finally:
            os.close(made)
    finally:
        os.close(file)


def copy_metadata(source: int | str, target: int | str, status: os.stat_result | None = None) -> None:
    """Owner, mode, times, and attributes that are not overlayfs' own."""
    found = status or os.stat(source)
    os.chown(target, found.st_uid, found.st_gid)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(target, stat.S_IMODE(found.st_mode))
    try:
        names = os.listxattr(source)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        names = []
    for name in names:
        if not name.startswith("trusted."):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
