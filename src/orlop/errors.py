"""The error vocabulary: every failure that crosses a room's wall is one of these.

Each kind has the status code of gRPC's `google.rpc.Code`, which ttrpc shares, and the word that containerd ends its
messages with; clients match on both. Raise the kind where the fact is known:

    raise NotFound(f'image "{name}"')           # reads: image "x": not found
    raise NotFound.verbatim(f"task {id} not found")   # where clients know another wording

Only `rpc/` turns them into a status.
"""

from __future__ import annotations

import errno
import os
from typing import ClassVar, Self


class OrlopError(Exception):
    """A failure with a status code. `str()` of it is the message as it goes over the wire."""

    code: ClassVar[int] = 2
    word: ClassVar[str] = ""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: {self.word}" if self.word else what)

    @classmethod
    def verbatim(cls, message: str) -> Self:
        """The same kind with `message` as it is, without the kind's word at the end."""
        error = cls.__new__(cls)
        Exception.__init__(error, message)
        return error

    @property
    def message(self) -> str:
        return str(self)

    def within(self, prefix: str) -> OrlopError:
        """The same kind of error, its message preceded by `prefix` and a colon."""
        return type(self).verbatim(f"{prefix}: {self}")


class Unknown(OrlopError):
    """A plain error: its text goes to the client unchanged."""

    code = 2


class Canceled(OrlopError):
    code = 1
    word = "context canceled"


class InvalidArgument(OrlopError):
    code = 3
    word = "invalid argument"


class DeadlineExceeded(OrlopError):
    code = 4
    word = "context deadline exceeded"


class NotFound(OrlopError):
    code = 5
    word = "not found"


class AlreadyExists(OrlopError):
    code = 6
    word = "already exists"


class PermissionDenied(OrlopError):
    code = 7
    word = "permission denied"


class ResourceExhausted(OrlopError):
    code = 8
    word = "resource exhausted"


class FailedPrecondition(OrlopError):
    code = 9
    word = "failed precondition"


class Aborted(OrlopError):
    code = 10
    word = "aborted"


class OutOfRange(OrlopError):
    code = 11
    word = "out of range"


class Unimplemented(OrlopError):
    code = 12
    word = "not implemented"


class Internal(OrlopError):
    code = 13
    word = "internal"


class Unavailable(OrlopError):
    code = 14
    word = "unavailable"


class DataLoss(OrlopError):
    code = 15
    word = "data loss"


class Unauthenticated(OrlopError):
    code = 16
    word = "unauthenticated"


KINDS: dict[int, type[OrlopError]] = {
    kind.code: kind
    for kind in (
        Unknown,
        Canceled,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
        Unauthenticated,
    )
}


NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What system calls answer on a full disk, or beyond a quota."""


def of_call(error: OSError, what: str) -> OrlopError:
    """What a system call's failure is told as: `what`, and why. ResourceExhausted on a full disk, else Unknown."""
    why = os.strerror(error.errno).lower() if error.errno else str(error)
    return (ResourceExhausted if error.errno in NO_ROOM else Unknown).verbatim(f"{what}: {why}")


def from_status(code: int, message: str) -> OrlopError:
    """The error that a peer's status stands for; an unknown code is `Unknown`."""
    return KINDS.get(code, Unknown).verbatim(message)
