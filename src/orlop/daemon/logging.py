"""The daemon's log: lines as containerd writes them, text or JSON, to standard error, never waiting for a reader.

Records go through a bounded queue to a thread that writes them; where a reader has stopped and the queue is full,
records are dropped and their number is told when the pipe moves again.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import threading
import time
from typing import Any

TRACE = 5
LEVELS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}
_NAMES = {TRACE: "trace", 10: "debug", 20: "info", 30: "warning", 40: "error", 50: "fatal"}
_BARE = re.compile(r"[A-Za-z0-9\-._/@^+]+", re.ASCII)
_SECRET = re.compile(r"(https?://[^\s\"'?]+)\?[^\s\"']+")
_QUEUED = 10_000


def level_of(name: str) -> int:
    """The level called `name`; empty is info. Raises ValueError for a name that is none."""
    if not name:
        return logging.INFO
    if name.lower() not in LEVELS:
        raise ValueError(f'not a valid logrus Level: "{name}"')
    return LEVELS[name.lower()]


class TextFormatter(logging.Formatter):
    """`time="..." level=info msg="..." key=value`; what a message holds cannot end the line or move a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = fields_of(record)
        return " ".join(f"{name}={_quoted(value, always=name in ('time', 'msg'))}" for name, value in pairs.items())


class JsonFormatter(logging.Formatter):
    """One object a line, with the same keys."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(fields_of(record))


def fields_of(record: logging.LogRecord) -> dict[str, str]:
    """What is written of `record`, in order. Query strings of URLs are left out: they hold signatures."""
    pairs = {"time": stamp(record.created), "level": _level_name(record.levelno), "msg": _text(record)}
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        pairs["error"] = f"{type(error).__name__}: {error}"
        pairs["stack"] = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
    extra: dict[str, Any] = getattr(record, "fields", {})
    pairs.update({name: str(value) for name, value in extra.items()})
    return {name: _SECRET.sub(r"\1?...", value) for name, value in pairs.items()}


def stamp(seconds: float) -> str:
    """RFC 3339 in UTC with nanoseconds."""
    whole, nanoseconds = divmod(int(seconds * 1e9), 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{nanoseconds:09d}Z"


def _text(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):
        return f"{record.msg} {record.args!r}"


def _level_name(number: int) -> str:
    return next((name for limit, name in sorted(_NAMES.items(), reverse=True) if number >= limit), "trace")


def _quoted(text: str, *, always: bool) -> str:
    if not always and _BARE.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return '"' + "".join(c if c.isprintable() else _code(c) for c in escaped) + '"'


def _code(character: str) -> str:
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


class QueuedHandler(logging.Handler):
    """Writes records to a descriptor from a thread of its own."""

    def __init__(self, descriptor: int, limit: int = _QUEUED) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._queue: queue.Queue[str | None] = queue.Queue(limit)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._queue.put_nowait(self.format(record))
        except queue.Full:
            self._dropped += 1
        except Exception:
            self.handleError(record)

    def drain(self, timeout: float = 1.0) -> None:
        """Writes what is queued and ends the thread; gives up after `timeout` seconds if nobody reads."""
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)

    def close(self) -> None:
        self.drain()
        super().close()

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            if self._dropped:
                line = f'level=warning msg="{self._dropped} log lines were dropped: nobody read them"\n{line}'
                self._dropped = 0
            try:
                self._write(line.encode(errors="backslashreplace") + b"\n")
            except OSError:
                continue  # nobody to tell: standard error is gone

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._descriptor, line) :]


def set_up(level: str, format: str, descriptor: int = 2) -> QueuedHandler:
    """Makes all logging go to `descriptor`. Raises ValueError for an unknown level or format."""
    if format not in ("", "text", "json"):
        raise ValueError(f'unsupported log format "{format}" (expected text or json)')
    number = level_of(level)
    logging.addLevelName(TRACE, "TRACE")
    logging.raiseExceptions = False
    handler = QueuedHandler(descriptor)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    for other in list(root.handlers):
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(number)
    logging.getLogger("asyncio").setLevel(max(number, logging.WARNING))
    return handler
