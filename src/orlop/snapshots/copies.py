"""Whole copies of file trees: blocks shared where the file system can, holes kept, metadata complete.

Only for trees that nobody writes to meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

_FICLONE = 0x40049409
_CHUNK = 1 << 30


def copy_tree(source: str, target: str) -> None:
    """Makes the existing directory `target` a copy of `source`: modes, owners, times, xattrs, hard links, devices."""
    first_names: dict[tuple[int, int], bytes] = {}
    finished: list[tuple[bytes, bytes, os.stat_result]] = []
    pending = [(os.fsencode(source), os.fsencode(target))]
    while pending:
        origin, copy = pending.pop()
        finished.append((origin, copy, os.lstat(origin)))
        for name in os.listdir(origin):
            entry, made = os.path.join(origin, name), os.path.join(copy, name)
            status = os.lstat(entry)
            if stat.S_ISDIR(status.st_mode):
                os.mkdir(made, 0o700)
                pending.append((entry, made))
                continue
            identity = (status.st_dev, status.st_ino)
            if status.st_nlink > 1 and identity in first_names:
                os.link(first_names[identity], made, follow_symlinks=False)
                continue
            first_names[identity] = made
            _copy_entry(entry, made, status)
            _copy_metadata(entry, made, status)
    # A directory's times change with what is made in it, and its mode may forbid that: both come last, deepest first.
    for origin, copy, status in reversed(finished):
        _copy_metadata(origin, copy, status)


def _copy_entry(source: bytes, target: bytes, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        _copy_file(source, target, status.st_size)
    elif stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
    else:
        os.mknod(target, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev)


def _copy_file(source: bytes, target: bytes, size: int) -> None:
    with open(source, "rb", buffering=0) as origin, open(target, "xb", buffering=0) as copy:
        try:
            fcntl.ioctl(copy.fileno(), _FICLONE, origin.fileno())
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
                raise
            _copy_extents(origin.fileno(), copy.fileno(), size)


def _copy_extents(source: int, target: int, size: int) -> None:
    os.ftruncate(target, size)
    offset = 0
    while offset < size:
        try:
            begin = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        offset = os.lseek(source, begin, os.SEEK_HOLE)
        _copy_range(source, target, begin, offset)


def _copy_range(source: int, target: int, begin: int, end: int) -> None:
    while begin < end:
        try:
            copied = os.copy_file_range(source, target, min(end - begin, _CHUNK), begin, begin)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            copied = os.pwrite(target, os.pread(source, min(end - begin, 1 << 20), begin), begin)
        if copied == 0:
            raise OSError(errno.EIO, f"file ends at {begin}, not at {end}")
        begin += copied


def _copy_metadata(source: bytes, target: bytes, status: os.stat_result) -> None:
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    # After the owner, whose change takes set-id bits and capabilities away.
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source, follow_symlinks=False):
        os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
