"""What CRIU says of a checkpoint or restore that failed; the runtime only tells that it did."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from orlop.errors import OrlopError, Unknown
from orlop.shim import files

_TAIL = 64 << 10
_MARK = b"Error ("


def reason(path: str) -> str:
    """The error in the log at `path` that ended it, to be put behind a message; empty if there is none.

    The first one is the cause and the others follow from it; what CRIU says of its helper programs and its own limits
    tells less.
    """
    try:
        lines = files.read(path, _TAIL, max(0, os.stat(path).st_size - _TAIL)).split(b"\n")
    except OSError:
        return ""
    for line in lines:
        _, _, text = line.partition(_MARK)
        where, _, said = text.partition(b"): ")
        if said and not where.startswith(b"criu/util.c") and not said.endswith(b"FAILED."):
            return f": criu: {said.decode('utf-8', 'replace').strip()}"
    return ""


@contextlib.contextmanager
def told(path: str) -> Iterator[None]:
    """An error inside ends with what the log at `path` says."""
    try:
        yield
    except OrlopError as error:
        why = reason(path)
        if not why:
            raise
        raise Unknown(f"{error}{why}") from error
