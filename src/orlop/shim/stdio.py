"""Standard streams without a terminal: where a process's descriptors 0, 1 and 2 lead.

A FIFO is not copied: the process gets an end of it, opened for it alone. Of each output FIFO the shim holds an end of
its own until the process has exited, so that a reader may come and go; of the stdin FIFO it holds a write end until the
client closes it, so that a client that vanishes does not end the input.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from orlop.errors import Unknown
from orlop.shim.reaper import Reaper


@dataclass(frozen=True, slots=True)
class Stdio:
    """What a client asked for: paths or URIs, empty where a stream is not wanted."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False

    @property
    def scheme(self) -> str:
        """The scheme of stdout, which decides for all streams."""
        try:
            scheme = urlsplit(self.stdout).scheme or "fifo"
        except ValueError as error:
            raise Unknown(f"unable to parse stdout uri {self.stdout!r}: {error}") from None
        if scheme not in ("fifo", "file", "binary", "binary-v2"):
            raise Unknown(f"unknown STDIO scheme {scheme}")
        return scheme


class Streams(Protocol):
    """The streams of one process over its life."""

    @property
    def files(self) -> Mapping[int, int]:
        """The process's descriptors, for the runtime to inherit."""
        ...

    @property
    def console_socket(self) -> str:
        """Where the runtime is to send the terminal, empty without one."""
        ...

    async def connect(self) -> None:
        """The runtime's command is done: receives the terminal, if there is one."""

    def resize(self, width: int, height: int) -> None:
        """Sets the terminal's size, if there is one."""

    def before_start(self) -> None:
        """The process is about to run."""

    def handed_over(self) -> None:
        """The process has its own copies of `files`."""

    def started(self) -> None:
        """The process runs."""

    def close_stdin(self) -> None:
        """The client's input has ended."""

    async def exited(self) -> None:
        """The process has exited; returns when what it wrote has gone where it should, or time is up."""

    async def finished(self) -> None:
        """Returns when whoever takes the output after the process has exited is done too, or time is up."""

    def close(self) -> None:
        """Gives back everything. May be called twice."""


class DirectStreams:
    """FIFOs and files that the process itself reads and writes."""

    def __init__(self) -> None:
        self._files: dict[int, int] = {}
        self._holders: list[int] = []
        self._stdin_path = ""
        self._stdin_reader = -1
        self._stdin_holder = -1
        self._input_ended = False
        self._reader_seen = True

    @classmethod
    def open(cls, stdio: Stdio, uid: int = 0, gid: int = 0) -> DirectStreams:
        """Opens what `stdio` names, FIFOs owned by `uid` and `gid` where these are set. Raises OSError."""
        streams = cls()
        try:
            if stdio.scheme == "file":
                streams._open_file(stdio)
            else:
                streams._open_input(stdio.stdin, uid, gid)
                streams._open_output(1, stdio.stdout, uid, gid)
                streams._open_output(2, stdio.stderr, uid, gid)
        except BaseException:
            streams.close()
            raise
        return streams

    def record(self) -> dict[str, Any] | None:
        """What `take_up` makes them again from in another process; None where that cannot be."""
        return dict(vars(self))

    def take_up(self, record: Mapping[str, Any], reaper: Reaper) -> None:
        vars(self).update(record)

    @property
    def running(self) -> set[int]:
        """Processes of the streams' own."""
        return set()

    @property
    def descriptors(self) -> set[int]:
        return {*self._files.values(), *self._holders, self._stdin_reader, self._stdin_holder} - {-1}

    @property
    def files(self) -> Mapping[int, int]:
        return self._files

    @property
    def console_socket(self) -> str:
        return ""

    async def connect(self) -> None:
        return

    def resize(self, width: int, height: int) -> None:
        return

    def before_start(self) -> None:
        """Decides whether the input stays open: not if its writer has come and gone already, or it was closed."""
        if self._stdin_reader < 0 or self._input_ended or self._stdin_holder >= 0 or _hung_up(self._stdin_reader):
            return
        with contextlib.suppress(OSError):
            self._stdin_holder = os.open(self._stdin_path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def handed_over(self) -> None:
        for descriptor in self._files.values():
            if descriptor != self._stdin_reader:
                os.close(descriptor)
        self._files = {}

    def started(self) -> None:
        """The process runs: its end of the input is its own business from now on."""
        if self._stdin_reader >= 0:
            os.close(self._stdin_reader)
            self._stdin_reader = -1

    def close_stdin(self) -> None:
        self._input_ended = True
        if self._stdin_holder >= 0:
            os.close(self._stdin_holder)
            self._stdin_holder = -1

    async def exited(self) -> None:
        # A FIFO that no client had opened for reading when we did may hold all that was ever written: keep it for
        # a reader who comes late, until the process is deleted.
        self.close_stdin()
        if self._reader_seen:
            self.close()

    async def finished(self) -> None:
        return

    def close(self) -> None:
        self.handed_over()
        self.started()
        self.close_stdin()
        for descriptor in self._holders:
            os.close(descriptor)
        self._holders = []

    def _open_input(self, path: str, uid: int, gid: int) -> None:
        if not path:
            return
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._files[0] = reader
        if stat.S_ISFIFO(os.fstat(reader).st_mode):
            self._stdin_reader, self._stdin_path = reader, path
            _give(reader, uid, gid)
        os.set_blocking(reader, True)

    def _open_output(self, number: int, path: str, uid: int, gid: int) -> None:
        if not path:
            return
        path = urlsplit(path).path if path.startswith("fifo:") else path
        if not _is_fifo(path):
            self._files[number] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            return
        try:
            writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # ENXIO: nobody has it open for reading
            writer = -1
            self._reader_seen = False
        # the reader that is there must not see the last writer go: the holder comes before any of ours is closed
        holder = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._holders.append(holder)
        _give(holder, uid, gid)
        if writer < 0:
            writer = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        self._files[number] = writer
        os.set_blocking(writer, True)

    def _open_file(self, stdio: Stdio) -> None:
        self._open_input(stdio.stdin, 0, 0)
        path = unquote(urlsplit(stdio.stdout).path)
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        self._files[1] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._files[2] = os.dup(self._files[1])


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except FileNotFoundError:
        return False


def _hung_up(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _give(descriptor: int, uid: int, gid: int) -> None:
    if uid or gid:
        os.fchown(descriptor, uid, gid)
