"""Small files, read and written whole by plain system calls.

Python's own file objects would do, but a shim pays for every page that it writes, and to open a first text file writes
two hundred of them.
"""

from __future__ import annotations

import os

_CHUNK = 64 << 10


def read(path: str, limit: int = 16 << 20, offset: int = 0) -> bytes:
    """The content of `path` from `offset` on, at most `limit` bytes of it. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if offset:
            os.lseek(descriptor, offset, os.SEEK_SET)
        content = b""
        while len(content) < limit:
            chunk = os.read(descriptor, min(_CHUNK, limit - len(content)))
            if not chunk:
                break
            content += chunk
        return content
    finally:
        os.close(descriptor)


def write(path: str, content: bytes, mode: int = 0o600) -> None:
    """Makes `content` all that is in `path`, which is created with `mode` where it is missing. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    finally:
        os.close(descriptor)
