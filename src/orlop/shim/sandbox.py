"""The Sandbox service: a shim that is there before its containers, and the namespaces that they join.

A sandbox has one process, forked from the shim, that does nothing but hold new namespaces of the kinds that the
sandbox's spec names without a path (network, IPC, UTS, PID), with the loopback interface up. Containers join them by
`/proc/<pid>/ns`. In a PID namespace of the sandbox that process is number 1: orphans of the containers are reaped, and
all end with it. While a sandbox is there, the shim stays when its last container goes.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from orlop.api.runtime.sandbox.v1 import sandbox_pb2 as api
from orlop.api.types.metrics_pb2 import Metric
from orlop.api.types.platform_pb2 import Platform
from orlop.errors import AlreadyExists, FailedPrecondition, NotFound, Unknown
from orlop.rpc.service import Call
from orlop.shim import files, loop
from orlop.shim.reaper import Child, Exit, Reaper
from orlop.shim.ttrpc import Interface, Service

_INTERFACE = Interface.of(api.DESCRIPTOR.services_by_name["Sandbox"])
_FLAGS = {"network": 0x40000000, "ipc": 0x08000000, "uts": 0x04000000}
_JOINABLE = _FLAGS | {"net": 0x40000000}
_NEW_PID = 0x20000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_PR_SET_NAME, _PR_SET_PDEATHSIG = 15, 1
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_STOP_DEADLINE = 10.0
_libc = ctypes.CDLL(None, use_errno=True)


class SandboxService:
    """The one sandbox of a shim. `stop_containers` ends what runs in it, `end` the shim if it has no containers.

    `stats` is what is counted of each of its containers.
    """

    def __init__(
        self,
        reaper: Reaper,
        stop_containers: Callable[[], Awaitable[None]],
        stats: Callable[[], list[Message]],
        end: Callable[[], None],
    ) -> None:
        self._reaper = reaper
        self._stop_containers = stop_containers
        self._stats = stats
        self._end = end
        self._id = ""
        self._spec: dict[str, object] = {}
        self._netns_path = ""
        self._created_at = 0
        self._holder: Child | None = None
        self._stopped = loop.Event()
        self._status, self._exited_at = 0, 0

    @property
    def is_there(self) -> bool:
        """Whether a sandbox was created and not yet shut down."""
        return bool(self._id)

    def record(self) -> dict[str, Any]:
        """What `take_up` takes up."""
        return {
            "id": self._id,
            "spec": self._spec,
            "netns_path": self._netns_path,
            "created_at": self._created_at,
            "holder": self._holder.pid if self._holder else 0,
            "stopped": self._stopped.is_set(),
            "exit": (self._status, self._exited_at),
        }

    def take_up(self, record: Mapping[str, Any]) -> None:
        """Goes on with what an earlier service recorded."""
        self._id, self._spec, self._netns_path = record["id"], record["spec"], record["netns_path"]
        self._created_at = record["created_at"]
        self._status, self._exited_at = record["exit"]
        if record["stopped"]:
            self._stopped.set()
        if record["holder"]:
            exit = Exit(record["holder"], self._status, self._exited_at)
            self._holder = self._reaper.ended(exit) if record["stopped"] else self._reaper.adopt(exit.pid)
            if not record["stopped"]:
                loop.create_task(self._follow(self._holder))

    @property
    def running(self) -> set[int]:
        """The process that holds the namespaces, if it has not ended."""
        return {self._holder.pid} if self._holder is not None and not self._stopped.is_set() else set()

    def service(self) -> dict[str, Service]:
        return {_INTERFACE.name: Service(_INTERFACE, self)}

    async def CreateSandbox(self, request: api.CreateSandboxRequest, call: Call) -> api.CreateSandboxResponse:
        if self._id:
            raise AlreadyExists(f"sandbox {self._id}")
        try:
            spec = json.loads(files.read(os.path.join(request.bundle_path, "config.json")))
        except FileNotFoundError:
            spec = {}
        except ValueError as error:
            raise Unknown(f"sandbox {request.sandbox_id}: its spec is no JSON: {error}") from error
        self._id, self._netns_path = request.sandbox_id, request.netns_path
        self._spec = spec if isinstance(spec, dict) else {}
        return api.CreateSandboxResponse()

    async def StartSandbox(self, request: api.StartSandboxRequest, call: Call) -> api.StartSandboxResponse:
        self._check(request.sandbox_id)
        if self._holder is not None or self._stopped.is_set():
            raise FailedPrecondition(f"sandbox {self._id} has been started")
        try:
            self._holder = self._reaper.adopt(self._hold())
        except OSError as error:
            raise Unknown(f"sandbox {self._id}: its namespaces cannot be made: {error}") from error
        self._created_at = time.time_ns()
        loop.create_task(self._follow(self._holder))
        return api.StartSandboxResponse(pid=self._holder.pid, created_at=_timestamp(self._created_at))

    async def Platform(self, request: api.PlatformRequest, call: Call) -> api.PlatformResponse:
        self._check(request.sandbox_id)
        machine = os.uname().machine
        return api.PlatformResponse(platform=Platform(os="linux", architecture=_MACHINES.get(machine, machine)))

    async def StopSandbox(self, request: api.StopSandboxRequest, call: Call) -> api.StopSandboxResponse:
        self._check(request.sandbox_id)
        await self._stop(request.timeout_secs or _STOP_DEADLINE)
        return api.StopSandboxResponse()

    async def WaitSandbox(self, request: api.WaitSandboxRequest, call: Call) -> api.WaitSandboxResponse:
        self._check(request.sandbox_id)
        await self._stopped.wait()
        return api.WaitSandboxResponse(exit_status=self._status, exited_at=_timestamp(self._exited_at))

    async def SandboxStatus(self, request: api.SandboxStatusRequest, call: Call) -> api.SandboxStatusResponse:
        self._check(request.sandbox_id)
        is_ready = self._holder is not None and not self._stopped.is_set()
        return api.SandboxStatusResponse(
            sandbox_id=self._id,
            pid=self._holder.pid if self._holder else 0,
            state="SANDBOX_READY" if is_ready else "SANDBOX_NOTREADY",
            created_at=_timestamp(self._created_at),
            exited_at=_timestamp(self._exited_at),
        )

    async def PingSandbox(self, request: api.PingRequest, call: Call) -> api.PingResponse:
        self._check(request.sandbox_id)
        return api.PingResponse()

    async def SandboxMetrics(self, request: api.SandboxMetricsRequest, call: Call) -> api.SandboxMetricsResponse:
        """What the containers of the sandbox count together; no data while there are none."""
        self._check(request.sandbox_id)
        metric = Metric(id=self._id, timestamp=_timestamp(time.time_ns()))
        parts = self._stats()
        if parts:
            from orlop.shim.totals import sum_of

            whole = sum_of(parts)
            metric.data.type_url, metric.data.value = whole.DESCRIPTOR.full_name, whole.SerializeToString()
        return api.SandboxMetricsResponse(metrics=metric)

    async def ShutdownSandbox(self, request: api.ShutdownSandboxRequest, call: Call) -> api.ShutdownSandboxResponse:
        self._check(request.sandbox_id)
        await self._stop(_STOP_DEADLINE)
        self._id = ""
        self._end()
        return api.ShutdownSandboxResponse()

    def _check(self, id: str) -> None:
        if not self._id or id != self._id:
            raise NotFound(f"sandbox {id}")

    async def _follow(self, holder: Child) -> None:
        ended = await holder.exit
        self._status, self._exited_at = ended.status, ended.at
        self._stopped.set()

    async def _stop(self, timeout: float) -> None:
        await self._stop_containers()
        if self._holder is None:
            self._exited_at = self._exited_at or time.time_ns()
            self._stopped.set()
            return
        self._holder.kill(signal.SIGKILL)
        async with loop.timeout(timeout):
            await self._stopped.wait()

    def _hold(self) -> int:
        """The pid of a process that holds the namespaces. Raises OSError with what it could not do."""
        outlet, inlet = os.pipe2(os.O_CLOEXEC)
        try:
            with _pid_namespace_for_children(_namespaces(self._spec).get("pid")):
                pid = self._reaper.fork()
                if pid == 0:
                    self._become_holder(inlet)
        except OSError:
            os.close(outlet)
            raise
        finally:
            os.close(inlet)
        try:
            said = os.read(outlet, 512)  # it writes at once, or is gone
        finally:
            os.close(outlet)
        if said != b"+":
            raise OSError(said.decode("utf-8", "replace") or "the process ended")
        return pid

    def _become_holder(self, inlet: int) -> NoReturn:
        """In the child: never returns."""
        try:
            os.setsid()
            _libc.prctl(_PR_SET_NAME, b"orlop-sandbox", 0, 0, 0)
            _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            self._enter_namespaces()
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            os.write(inlet, b"+")
            os.closerange(0, 1 << 20)
            while True:
                signal.pause()
        except BaseException as error:
            os.write(inlet, str(error).encode("utf-8", "replace")[:500] or b"-")
        finally:
            os._exit(1)

    def _enter_namespaces(self) -> None:
        wanted = _namespaces(self._spec)
        if self._netns_path:
            wanted["network"] = self._netns_path
        for kind, path in wanted.items():
            if path and kind in _JOINABLE:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                _check(_libc.setns(descriptor, _JOINABLE[kind]), path)
                os.close(descriptor)
        new = [kind for kind, path in wanted.items() if not path and kind in _FLAGS]
        _check(_libc.unshare(sum(_FLAGS[kind] for kind in new)), "unshare")
        if "network" in new:
            _raise_loopback()
        hostname = self._spec.get("hostname")
        if "uts" in new and isinstance(hostname, str) and hostname:
            socket.sethostname(hostname)


@contextmanager
def _pid_namespace_for_children(path: str | None) -> Iterator[None]:
    """A process that is forked meanwhile is in the PID namespace at `path`, if that is empty in a new one."""
    if path is None:
        yield
        return
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if path:
            joined = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _check(_libc.setns(joined, _NEW_PID), path)
            finally:
                os.close(joined)
        else:
            _check(_libc.unshare(_NEW_PID), "unshare")
        try:
            yield
        finally:
            _check(_libc.setns(own, _NEW_PID), "setns")
    finally:
        os.close(own)


def _namespaces(spec: dict[str, object]) -> dict[str, str]:
    """The namespaces of a runtime-spec document by kind; the path of one to be made is empty."""
    linux = spec.get("linux")
    entries = linux.get("namespaces") if isinstance(linux, dict) else None
    found = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict):
            found[str(entry.get("type"))] = str(entry.get("path") or "")
    return found


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = struct.pack("16sH22x", b"lo", 0)
        flags = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | _IFF_UP))


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _timestamp(at: int) -> Timestamp | None:
    if not at:
        return None
    seconds, nanos = divmod(at, 10**9)
    return Timestamp(seconds=seconds, nanos=nanos)
