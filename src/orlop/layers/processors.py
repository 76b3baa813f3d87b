"""Stream processors: the administrator's programs that turn a layer of one media type into another (decryption, say).

A program reads the layer on standard input and writes the result on standard output. On descriptor 3 it has the
payload that the client sent for it, a protobuf `Any`, if there is one. `STREAM_PROCESSOR_MEDIATYPE` is the type of what
it reads. It fails by its exit status; what it wrote on standard error is then the error. It has a process group of its
own, which goes with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.any_pb2 import Any

from orlop.core.typed import Typed
from orlop.errors import Canceled, Unknown

_PIECE = 1 << 18
_STDERR_LIMIT = 1 << 16
_LOOK_MS = 200
"""How often a program that says nothing lets its caller see whether it should go on."""
EXIT_SECONDS = 10.0
"""How long a program may take to end once its output has ended."""


@dataclass(frozen=True, slots=True)
class StreamProcessor:
    """One entry of `[stream_processors]`; `env` holds `NAME=value` texts."""

    id: str
    accepts: Sequence[str]
    returns: str
    path: str
    args: Sequence[str] = ()
    env: Sequence[str] = field(default=())

    @classmethod
    def of(cls, id: str, config: Mapping[str, object]) -> StreamProcessor:
        """Reads the section `id`. Raises Unknown for a value of another type than it must have."""

        def texts(key: str) -> tuple[str, ...]:
            value = config.get(key, ())
            if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
                raise Unknown(f"stream_processors.{id}: {key} must be a list of strings")
            return tuple(value)

        def text(key: str) -> str:
            value = config.get(key, "")
            if not isinstance(value, str):
                raise Unknown(f"stream_processors.{id}: {key} must be a string")
            return value

        return cls(id, texts("accepts"), text("returns"), text("path"), texts("args"), texts("env"))

    def program(self) -> str:
        """The executable. Raises Unknown, in the words clients know, if it is not found."""
        found = shutil.which(self.path)
        if found is None:
            if "/" in self.path:
                raise Unknown(f'exec: "{self.path}": stat {self.path}: no such file or directory')
            raise Unknown(f'exec: "{self.path}": executable file not found in $PATH')
        return found


def run(
    processor: StreamProcessor,
    program: str,
    media_type: str,
    payload: Typed | None,
    chunks: Iterable[bytes],
    stop: threading.Event,
) -> Iterator[bytes]:
    """What `program` makes of `chunks`. Raises Unknown with what it wrote on standard error if it fails.

    The program is killed where the iterator is closed early, and where `stop` is set, which raises Canceled.
    """
    with contextlib.ExitStack() as stack:

        def pipe() -> tuple[int, int]:
            reading, writing = os.pipe2(os.O_CLOEXEC)
            return reading, writing

        stdin, feed = pipe()
        result, stdout = pipe()
        complaints, stderr = pipe()
        theirs = [stdin, stdout, stderr]
        stack.callback(os.close, result)
        if payload is not None:
            secret = os.memfd_create("payload", os.MFD_CLOEXEC)
            theirs.append(secret)
            os.write(secret, Any(type_url=payload.type_url, value=payload.value).SerializeToString())
            os.lseek(secret, 0, os.SEEK_SET)
        environment = {**os.environ, **dict(pair.split("=", 1) for pair in processor.env if "=" in pair)}
        environment["STREAM_PROCESSOR_MEDIATYPE"] = media_type
        try:
            pid = os.posix_spawn(
                program,
                [processor.path, *processor.args],
                environment,
                file_actions=[*_moves(theirs)],
                setpgroup=0,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except OSError as error:
            os.close(feed)
            os.close(complaints)
            raise Unknown(f"fork/exec {program}: {os.strerror(error.errno or 0).lower()}") from error
        finally:
            for fd in theirs:
                os.close(fd)
        said = bytearray()
        failures: list[BaseException] = []
        feeder = threading.Thread(target=_feed, args=(feed, chunks, failures), name="processor-feed")
        listener = threading.Thread(target=_listen, args=(complaints, said), name="processor-stderr")
        feeder.start()
        listener.start()
        ended = False
        try:
            yield from _output(result, stop)
            ended = True
        finally:
            in_time, status = _end(pid, EXIT_SECONDS if ended else 0)
            feeder.join()
            listener.join()
        if failures:
            raise failures[0]
        if not in_time:
            raise Unknown(f"stream processor {processor.id}: not ended {EXIT_SECONDS:g} s after its output")
        if status:
            raise Unknown(said.decode("utf-8", "replace") or f"stream processor {processor.id}: {_how(status)}")


def _output(fd: int, stop: threading.Event) -> Iterator[bytes]:
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    while True:
        while not waiting.poll(_LOOK_MS):
            if stop.is_set():
                raise Canceled("layer")
        data = os.read(fd, _PIECE)
        if not data:
            return
        yield data


def _end(pid: int, seconds: float) -> tuple[bool, int]:
    """Waits so long for a program to end, and kills what is left of its group; whether it had ended, and its status.

    The group is killed before its leader is waited for: afterwards the number could be another's.
    """
    handle = os.pidfd_open(pid)
    try:
        waiting = select.poll()
        waiting.register(handle, select.POLLIN)
        in_time = bool(waiting.poll(seconds * 1000))
    finally:
        os.close(handle)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return in_time, os.waitpid(pid, 0)[1]


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"ended by signal {-code}" if code < 0 else f"exit status {code}"


def _moves(fds: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Puts `fds` at 0, 1, 2, 3. They are first moved out of the way, since one may lie where another belongs."""
    clear = max(*fds, len(fds)) + 1
    for place, fd in enumerate(fds):
        yield os.POSIX_SPAWN_DUP2, fd, clear + place
    for place in range(len(fds)):
        yield os.POSIX_SPAWN_DUP2, clear + place, place
    for place in range(len(fds)):
        yield os.POSIX_SPAWN_CLOSE, clear + place  # type: ignore[misc]


def _feed(fd: int, chunks: Iterable[bytes], failures: list[BaseException]) -> None:
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(fd, view) :]
    except BrokenPipeError:
        pass  # The program has read all it wants; its exit status tells the rest.
    except BaseException as error:  # carried to the thread that asked
        failures.append(error)
    finally:
        os.close(fd)


def _listen(fd: int, said: bytearray) -> None:
    try:
        while data := os.read(fd, 4096):
            said += data[: _STDERR_LIMIT - len(said)]
    finally:
        os.close(fd)
