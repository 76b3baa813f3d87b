"""Where everything stands: the stacks of all threads and tasks, for the log and for a file."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from types import CodeType
from typing import Any

log = logging.getLogger(__name__)


def render() -> str:
    """The stacks of all threads, and of all tasks of the running loop."""
    out = io.StringIO()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for identifier, frame in sys._current_frames().items():
        out.write(f"thread {names.get(identifier, '?')} ({identifier}):\n")
        traceback.print_stack(frame, file=out)
        out.write("\n")
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:
        tasks = set()
    for task in sorted(tasks, key=lambda one: one.get_name()):
        out.write(f"task {task.get_name()} {'done' if task.done() else 'waiting'}:\n")
        for code, line in _awaiting(task.get_coro()):
            out.write(f'  File "{code.co_filename}", line {line}, in {code.co_qualname}\n')
        out.write("\n")
    return out.getvalue()


def _awaiting(coroutine: Any) -> Iterator[tuple[CodeType, int]]:
    """Where `coroutine` waits, from itself down to the innermost that it awaits."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        frame = frame or getattr(coroutine, "gi_frame", None)
        if frame is not None:
            # A frame that is suspended at its very start, or running, may have no line.
            yield frame.f_code, frame.f_lineno or frame.f_code.co_firstlineno
        inner = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
        coroutine = inner or getattr(coroutine, "gi_yieldfrom", None)


def dump() -> str:
    """Logs the stacks and writes them to `<temporary directory>/orlop.<pid>.stacks.log`; returns that path."""
    text = render()
    log.info("stacks of threads and tasks", extra={"fields": {"stacks": text}})
    path = os.path.join(tempfile.gettempdir(), f"orlop.{os.getpid()}.stacks.log")
    descriptor, partial = tempfile.mkstemp(prefix=".orlop-stacks-", dir=os.path.dirname(path))
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.replace(partial, path)
    return path
