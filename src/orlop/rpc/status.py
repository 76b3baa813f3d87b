"""What a failure is on the wire: any exception as a status code and a message.

This is the one edge where errors become statuses; gRPC and ttrpc share the codes. It knows no transport, so that shims
may use it.
"""

from __future__ import annotations

import errno
import logging
import os

from orlop.errors import NO_ROOM, DeadlineExceeded, OrlopError, ResourceExhausted, Unavailable, Unknown, from_status

__all__ = ["DEADLINE_TEXT", "from_status", "status_of"]

log = logging.getLogger(__name__)

CANCELED_TEXT = "context canceled"
DEADLINE_TEXT = "context deadline exceeded"
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


def status_of(error: BaseException, where: str = "") -> tuple[int, str]:
    """The code and message that tell a client of `error`, which `where` (a method's full name) raised.

    An exception that is no part of the vocabulary is logged with its traceback, and the client is told only that
    something unexpected happened: its text is for the log.
    """
    if isinstance(error, OrlopError):
        return error.code, str(error)
    if isinstance(error, BaseExceptionGroup):
        return status_of(_foremost(error), where)
    if not isinstance(error, Exception):  # the cancellation of asyncio, or of a shim's loop
        return 1, CANCELED_TEXT
    if isinstance(error, OSError) and error.errno is not None:
        return _of_os_error(error, error.errno)
    if isinstance(error, TimeoutError):
        return DeadlineExceeded.code, DEADLINE_TEXT
    log.error("unexpected failure in %s", where or "a call", exc_info=error)
    return Unknown.code, f"unexpected failure in {where or 'the call'}: the server's log has the details"


def _of_os_error(error: OSError, number: int) -> tuple[int, str]:
    text = error.strerror or os.strerror(number)
    if error.filename is not None:
        text = f"{text}: {os.fsdecode(error.filename)}"
    if number in NO_ROOM:
        return ResourceExhausted.code, text
    if number in _NO_DESCRIPTORS:
        return Unavailable.code, text
    return Unknown.code, text


def _foremost(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure of a task group that says most: one of the vocabulary if there is one, else the first."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending[:0] = error.exceptions
        else:
            leaves.append(error)
    return next((leaf for leaf in leaves if isinstance(leaf, OrlopError)), leaves[0])
