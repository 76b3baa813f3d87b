"""The OCI runtime's command line, as runc and crun have it.

What a runtime has to say about a failure is the last error in its JSON log, or else what it wrote to its standard
error. Every command has a deadline; one that passes it is killed with its whole process group.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orlop.errors import DeadlineExceeded, Unknown
from orlop.shim import hybrid, loop, runtime_log
from orlop.shim.reaper import Reaper

DEFAULT_ROOT = "/run/containerd/runc"
DEADLINE = 120.0
"""Seconds that one command of the runtime may take."""

_OUTPUT_LIMIT = 4 << 20


class RuntimeFailure(Unknown):
    """The runtime ended with another status than 0. `str()` is as containerd words it."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """One OCI runtime with its state directory and its log, for the containers of one namespace."""

    reaper: Reaper
    binary: str
    root: str
    log: str
    systemd_cgroup: bool = False
    environment: Mapping[bytes, bytes] = field(default_factory=dict)

    async def create(
        self,
        id: str,
        bundle: str,
        pid_file: str,
        files: Mapping[int, int],
        *,
        console_socket: str = "",
        no_pivot: bool = False,
        no_new_keyring: bool = False,
    ) -> None:
        arguments = ["create", "--bundle", bundle, "--pid-file", pid_file]
        if console_socket:
            arguments += ["--console-socket", console_socket]
        if no_pivot:
            arguments.append("--no-pivot")
        if no_new_keyring:
            arguments.append("--no-new-keyring")
        await self._told("OCI runtime create failed", [*arguments, id], files, creates=True)

    async def restore(
        self,
        id: str,
        bundle: str,
        pid_file: str,
        files: Mapping[int, int],
        *,
        image_path: str,
        work_path: str,
        console_socket: str = "",
        no_pivot: bool = False,
        environment: Mapping[bytes, bytes],
    ) -> None:
        arguments = ["restore", "--image-path", image_path]
        if work_path:
            arguments += ["--work-path", work_path]
        arguments += ["--detach", "--pid-file", pid_file, "--bundle", bundle]
        if not self._is_crun:  # it never is one
            arguments.append("--no-subreaper")
        if console_socket:
            arguments += ["--console-socket", console_socket]
        if no_pivot:
            arguments.append("--no-pivot")
        runtime = replace(self, environment=environment)
        await runtime._told("OCI runtime restore failed", [*arguments, id], files, creates=True)

    async def start(self, id: str) -> None:
        await self._told("OCI runtime start failed", ["start", id])

    async def exec(
        self, id: str, process: str, pid_file: str, files: Mapping[int, int], *, console_socket: str = ""
    ) -> None:
        arguments = ["exec", "--process", process]
        if console_socket:
            arguments += ["--console-socket", console_socket]
        await self._told("OCI runtime exec failed", [*arguments, "--detach", "--pid-file", pid_file, id], files)

    async def kill(self, id: str, number: int, *, all: bool = False) -> None:
        await self._run(["kill", *(["--all"] if all else []), id, str(number)])

    async def delete(self, id: str, *, force: bool = False) -> None:
        """Deletes the container; one that the runtime does not know is deleted already."""
        try:
            await self._told("failed to delete task", ["delete", *(["--force"] if force else []), id])
        except Unknown as error:
            if "does not exist" not in str(error):
                raise

    async def pause(self, id: str) -> None:
        await self._told("OCI runtime pause failed", ["pause", id])

    async def resume(self, id: str) -> None:
        await self._told("OCI runtime resume failed", ["resume", id])

    async def update(self, id: str, resources: bytes) -> None:
        await self._run(["update", "--resources=-", id], stdin=resources)

    async def pids(self, id: str) -> list[int]:
        output = await self._told("OCI runtime ps failed", ["ps", "--format", "json", id])
        return [int(pid) for pid in json.loads(output or b"[]") or []]

    async def checkpoint(self, id: str, arguments: Sequence[str], environment: Mapping[bytes, bytes]) -> None:
        await replace(self, environment=environment)._run(["checkpoint", *arguments, id])

    async def features(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(await self._run(["features"], bare=True))
        return answer

    async def _told(
        self, prefix: str, arguments: Sequence[str], files: Mapping[int, int] | None = None, *, creates: bool = False
    ) -> bytes:
        """Runs a command; its failure is told as `prefix` and the last error of the log."""
        seen = runtime_log.size(self.log)
        try:
            return await self._run(arguments, files=files, creates=creates)
        except RuntimeFailure as error:
            said = runtime_log.last_error(self.log, seen)
            if self._is_crun:
                said = runtime_log.in_runcs_words(said)
            raise Unknown(f"{prefix}: {said or error}") from error

    async def _run(
        self,
        arguments: Sequence[str],
        *,
        files: Mapping[int, int] | None = None,
        stdin: bytes | None = None,
        bare: bool = False,
        creates: bool = False,
    ) -> bytes:
        argv = [self.binary]
        if not bare:
            argv += ["--root", self.root, "--log", self.log, "--log-format", "json"]
            if self.systemd_cgroup:
                argv.append("--systemd-cgroup")
        argv += arguments
        with contextlib.ExitStack() as stack:
            given = dict(files or {})
            output = _Output() if files is None else None
            if output is not None:
                stack.callback(output.close)
                given.update({1: output.inlet, 2: output.inlet})
            if stdin is not None:
                given[0] = _memory_file(stack, stdin)
            try:
                with self._view(creates):
                    child = self.reaper.spawn(argv, self.environment, given)
            except OSError as error:
                where = "" if error.filename in (None, self.binary) else f"{error.filename}: "
                why = os.strerror(error.errno or 0).lower()
                raise RuntimeFailure(f'exec: "{self.binary}": {where}{why}') from error
            if output is not None:
                output.start()
            try:
                async with loop.timeout(DEADLINE):
                    ended = await child.exit
            except TimeoutError:
                raise DeadlineExceeded(f"{self.binary} {arguments[0]} took over {DEADLINE:.0f} s") from None
            finally:
                if not child.exit.done():
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)
            text = output.finish() if output is not None else b""
        if ended.status != 0:
            said = text.decode("utf-8", "replace").strip()
            if self._is_crun:
                said = runtime_log.in_runcs_words(said)
            raise RuntimeFailure(
                f"{os.path.basename(self.binary)} did not terminate successfully: exit status {ended.status}"
                + (f": {said}" if said else "")
            )
        return text

    @property
    def _is_crun(self) -> bool:
        return os.path.basename(self.binary) == "crun"

    def _view(self, creates: bool) -> contextlib.AbstractContextManager[None]:
        """The mounts that the runtime is to see when it starts."""
        if creates and self._is_crun and hybrid.has_controllers():
            return hybrid.without_controllers()
        return contextlib.nullcontext()


class _Output:
    """What a command prints, read while it runs so that it never blocks; beyond a limit it is thrown away."""

    def __init__(self) -> None:
        self._outlet, self.inlet = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.inlet, True)
        self._text = bytearray()
        self._open = True

    def start(self) -> None:
        os.close(self.inlet)
        self.inlet = -1
        loop.add_reader(self._outlet, self._read)

    def finish(self) -> bytes:
        """All that was printed by now: a process that the command left behind may hold the pipe for ever."""
        while self._open and self._read():
            pass
        return bytes(self._text)

    def close(self) -> None:
        loop.remove_reader(self._outlet)
        os.close(self._outlet)
        if self.inlet >= 0:
            os.close(self.inlet)

    def _read(self) -> bool:
        try:
            chunk = os.read(self._outlet, 65536)
        except BlockingIOError:
            return False
        if not chunk:
            self._open = False
            loop.remove_reader(self._outlet)
        elif len(self._text) < _OUTPUT_LIMIT:
            self._text += chunk
        return bool(chunk)


def _memory_file(stack: contextlib.ExitStack, content: bytes) -> int:
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    stack.callback(os.close, descriptor)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
