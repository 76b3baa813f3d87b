"""fs-verity: files that the kernel reads only as they were (Documentation/filesystems/fsverity.rst)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

_ENABLE = 0x40806685
_ARGUMENT = struct.pack("=IIIIQIIQ88x", 1, 1, 4096, 0, 0, 0, 0, 0)
"""Version 1, SHA-256, blocks of 4 KiB, no salt, no signature (struct fsverity_enable_arg)."""

_ABSENT = frozenset((errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EROFS, errno.ENOPKG))


def enable(path: Path) -> bool:
    """Seals the file at `path`, which nobody may have open for writing; False where its file system cannot.

    Raises OSError for other failures, such as a full disk.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _ENABLE, _ARGUMENT)
    except OSError as error:
        if error.errno == errno.EEXIST:
            return True
        if error.errno in _ABSENT:
            return False
        raise
    finally:
        os.close(fd)
    return True
