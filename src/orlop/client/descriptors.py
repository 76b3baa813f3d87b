"""Reading and writing file descriptors of any kind from an event loop, so that a wait can be cancelled.

A pipe or terminal that this program was given may belong to others too, who must not find it non-blocking. A descriptor
of our own for the same pipe, opened through /proc, can be.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager

CHUNK = 1 << 16


async def read(descriptor: int) -> bytes:
    """What is there to read, once there is something; empty at the end."""
    while True:
        try:
            await _ready(descriptor, write=False)
        except PermissionError:
            return await asyncio.to_thread(os.read, descriptor, CHUNK)  # a regular file: always ready
        try:
            return os.read(descriptor, CHUNK)
        except BlockingIOError:
            continue


async def write(descriptor: int, data: bytes) -> None:
    """Writes all of `data`. Raises OSError, BrokenPipeError where nobody reads any more."""
    size = CHUNK
    wait = os.get_blocking(descriptor)
    view = memoryview(data)
    while view:
        if wait:
            try:
                await _ready(descriptor, write=True)
                size = select.PIPE_BUF  # as much as goes into a pipe that is ready, without a wait
            except PermissionError:
                wait = False  # a regular file: always ready
        try:
            view = view[os.write(descriptor, view[:size]) :]
        except BlockingIOError:
            await _ready(descriptor, write=True)


@contextmanager
def sink(descriptor: int) -> Iterator[int]:
    """A descriptor that writes where `descriptor` does and does not block, if there can be one."""
    own = _reopened(descriptor)
    try:
        yield descriptor if own is None else own
    finally:
        if own is not None:
            os.close(own)


def _reopened(descriptor: int) -> int | None:
    # A file has its position in the descriptor, and a socket cannot be opened again: both are written as they are.
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        return None
    try:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        return os.open(f"/proc/self/fd/{descriptor}", flags)
    except OSError:
        return None  # it belongs to another user, or nobody reads it any more, which the first write tells


async def _ready(descriptor: int, *, write: bool) -> None:
    """Waits until `descriptor` can be read or written. Raises PermissionError for a regular file."""
    loop = asyncio.get_running_loop()
    add, remove = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    ready: asyncio.Future[None] = loop.create_future()

    def set_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    add(descriptor, set_ready)
    try:
        await ready
    finally:
        remove(descriptor)
