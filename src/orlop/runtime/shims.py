"""All shims of this daemon: started, found again after a restart, watched, and cleared away when they die."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
from google.protobuf.message import DecodeError

from orlop import faults
from orlop.api.events import task_pb2 as events
from orlop.api.runtime.task.v3 import shim_pb2
from orlop.api.types.task import task_pb2
from orlop.core import clock
from orlop.core.event import Envelope, Publisher
from orlop.core.typed import Typed
from orlop.core.wire import common
from orlop.core.wire import task as wire
from orlop.errors import AlreadyExists, DeadlineExceeded, NotFound, OrlopError, Unavailable
from orlop.rpc.ttrpc import Client
from orlop.runtime import bootstrap as contract
from orlop.runtime.bootstrap import ShimSettings
from orlop.runtime.bundle import Bootstrap, Bundle, Bundles
from orlop.runtime.names import ShimBinaries, ShimBinary, own_binary
from orlop.runtime.orphan import end_orphan
from orlop.runtime.owner import Owner
from orlop.runtime.remains import Remains
from orlop.runtime.shim import Shim
from orlop.runtime.shimlog import ShimLog
from orlop.runtime.sockets import remove_dead

log = logging.getLogger(__name__)

GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
DEFAULT_SOCKET_DIR = "/run/containerd/s"
_KILLED = 137
_NOT_CLEANED = 255

RuntimeOf = Callable[[str, str], Awaitable[str]]
"""The runtime name in the record of a container, by namespace and id; empty if there is no record."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds; the `[timeouts]` of the configuration."""

    load: float = 5.0
    cleanup: float = 5.0
    shutdown: float = 3.0
    state: float = 2.0
    stats: float = 2.0


class Forks(Protocol):
    """Where our own shims come from."""

    async def fork(self, bundle: Bundle, group: str, socket: str, settings: ShimSettings) -> int:
        """The pid of a new shim that listens on `socket`. Raises Unavailable if there is no fork server to be had."""


class _Annotated(msgspec.Struct):
    annotations: dict[str, str] | None = None


def group_of(spec: bytes | None, id: str) -> str:
    """Containers of one group share a shim."""
    if spec is not None:
        with contextlib.suppress(msgspec.MsgspecError):
            annotations = msgspec.json.decode(spec, type=_Annotated).annotations or {}
            for name in GROUP_ANNOTATIONS:
                if annotations.get(name):
                    return annotations[name]
    return id


def socket_path(directory: str, grpc_address: str, namespace: str, group: str) -> str:
    """Where the shim of a group listens; by this rule it is found even if its address was never written down."""
    name = hashlib.sha256(f"{grpc_address}/{namespace}/{group}".encode()).hexdigest()
    return f"{directory or DEFAULT_SOCKET_DIR}/{name}"


class ShimManager:
    def __init__(
        self,
        bundles: Bundles,
        binaries: ShimBinaries,
        settings: ShimSettings,
        publisher: Publisher,
        forkserver: Forks,
        limits: Limits = Limits(),
    ) -> None:
        self.bundles = bundles
        self.binaries = binaries
        self.settings = settings
        self.limits = limits
        self._publisher = publisher
        self._forkserver = forkserver
        self._shims: dict[tuple[str, str], Shim] = {}
        self._logs: dict[Path, ShimLog] = {}
        self._groups: dict[str, asyncio.Lock] = {}
        self.owner = Owner()
        self.remains = Remains(settings)

    def find(self, namespace: str, id: str) -> Shim | None:
        """The shim of a task, dead ones that are not yet cleared away too."""
        return self._shims.get((namespace, id))

    def all(self, namespace: str) -> list[Shim]:
        return [shim for shim in self._shims.values() if shim.namespace == namespace and not shim.dead]

    async def start(self, bundle: Bundle, binary: ShimBinary, options: Typed | None, spec: bytes | None) -> Shim:
        """A connected shim for `bundle`, not yet known to `find`: `add` it when it has a task."""
        self._open_log(bundle)
        pid = 0
        if binary.builtin:
            bootstrap, pid = await self._fork(bundle, binary, options, group_of(spec, bundle.id))
        else:
            bootstrap = await contract.start(binary.path, bundle, options, self.settings)
        try:
            faults.point("runtime.shim.started")
            bundle.write_bootstrap(bootstrap, binary.path)
            faults.point("runtime.shim.recorded")
            client = await Client.connect(bootstrap.address, contract.START_TIMEOUT)
        except (OSError, OrlopError):
            await self._abandon(bundle, bootstrap, binary, pid)
            raise
        shim = Shim(bundle, bootstrap, binary.path, client)
        try:
            if pid:
                shim.adopt(pid)
            else:
                await shim.identify(self.limits.load)
        except OrlopError:
            await shim.close()
            await self._abandon(bundle, bootstrap, binary, pid)
            raise
        return shim

    async def _abandon(self, bundle: Bundle, bootstrap: Bootstrap, binary: ShimBinary, pid: int) -> None:
        """Ends a shim that has started and cannot be used, as far as it can be reached."""
        with contextlib.suppress(OrlopError):
            client = await Client.connect(bootstrap.address, self.limits.shutdown)
            shim = Shim(bundle, bootstrap, binary.path, client)
            shim.adopt(pid)
            if not await shim.shut_down(self.limits.shutdown):
                shim.kill()
            await shim.close()
        await self._run_delete(bundle, binary.path)
        await asyncio.to_thread(remove_dead, bootstrap.address)

    async def join(self, bundle: Bundle, binary: str, sandbox: str, endpoint: Bootstrap) -> Shim:
        """A connection for `bundle` to the `endpoint` that serves the tasks of `sandbox`."""
        bundle.write_sandbox(sandbox)  # first: without it a later daemon would take the shim for the task's alone
        bundle.write_bootstrap(endpoint, binary)
        client = await Client.connect(endpoint.address, self.limits.load)
        shim = Shim(bundle, endpoint, binary, client)
        shim.joined = True
        try:
            await shim.identify(self.limits.load)
        except OrlopError:
            await shim.close()
            raise
        return shim

    def add(self, shim: Shim) -> None:
        """Makes the shim known, and watches it from now on."""
        if shim.key in self._shims:
            raise AlreadyExists(f"task {shim.id}")
        self._shims[shim.key] = shim
        self.owner.start(self._watch(shim), f"watch of shim {shim.id}")

    async def _fork(
        self, bundle: Bundle, binary: ShimBinary, options: Typed | None, group: str
    ) -> tuple[Bootstrap, int]:
        path = socket_path(self.settings.socket_dir, self.settings.grpc_address, bundle.namespace, group)
        answer = Bootstrap(contract.MAX_VERSION, f"unix://{path}")
        async with self._groups.setdefault(path, asyncio.Lock()):
            if group != bundle.id and await _accepts(answer.address):
                return answer, 0
            _socket_directory(Path(path).parent)
            try:
                return answer, await self._forkserver.fork(bundle, group, path, self.settings)
            except Unavailable as error:
                log.warning("%s; shim %s is executed instead", error, bundle.id)
                return await contract.start(binary.path, bundle, options, self.settings), 0
            finally:
                self._groups.pop(path, None)

    async def end(self, shim: Shim, *, force: bool = False) -> None:
        """Ends a shim whose task is deleted (with `force`: or is not), and removes all that it left."""
        shim.ending = True
        if force:
            await self._run_delete(shim.bundle, shim.binary)
        # One that others use ends when the last of them says so: it is told, and not waited for.
        is_kept = shim.joined or self._is_shared(shim)
        if not await shim.shut_down(self.limits.shutdown, wait=not is_kept) and not is_kept:
            log.warning("shim %s (pid %d) does not end: it is killed", shim.id, shim.pid)
            shim.kill()
        await shim.close()
        await self.forget(shim.bundle, shim.bootstrap.address)
        if self._shims.get(shim.key) is shim:
            del self._shims[shim.key]

    async def forget(self, bundle: Bundle, address: str = "") -> None:
        """Removes a bundle, closes its log, and removes what a shim that is gone has left at `address`.

        The bundle of a container that is not deleted yet goes when it is.
        """
        shim_log = self._logs.pop(bundle.path, None)
        if shim_log is not None:
            shim_log.close()
        is_kept = await self.remains.take_over(bundle, self.limits.cleanup)

        def remove() -> None:
            if not is_kept:
                bundle.remove()
            if address:
                remove_dead(address)

        await asyncio.to_thread(remove)

    async def discard(self, bundle: Bundle, binary: str) -> None:
        """Removes what a shim that we have no connection to has left of `bundle`."""
        if binary:
            await self._run_delete(bundle, binary)
        await self.forget(bundle, self._own_address(bundle))

    async def load_existing(self, runtime_of: RuntimeOf) -> None:
        """Connects to the shims that an earlier daemon started; those that cannot be reached are cleared away."""
        gate = asyncio.Semaphore(max(2, os.cpu_count() or 1))

        async def load(bundle: Bundle) -> None:
            async with gate:
                try:
                    await self._load(bundle, runtime_of)
                except Exception:
                    log.exception("bundle %s cannot be loaded", bundle.path)

        async with asyncio.TaskGroup() as group:
            for bundle in await asyncio.to_thread(lambda: list(self.bundles.walk())):
                group.create_task(load(bundle))
        await asyncio.to_thread(self.bundles.remove_stale_work, set(self._shims))

    async def _load(self, bundle: Bundle, runtime_of: RuntimeOf) -> None:
        if bundle.is_remains:
            self.remains.delete(bundle, own_binary(), self.limits.cleanup)
            return
        binary = bundle.binary()
        if not binary:
            with contextlib.suppress(OrlopError):
                binary = self.binaries.resolve(await runtime_of(bundle.namespace, bundle.id)).path
        recorded = bundle.bootstrap()
        if recorded is None:
            # The shim may have been started just before its address was written; the naming rule tells it.
            recorded = Bootstrap(contract.MAX_VERSION, self._own_address(bundle))
        self._open_log(bundle)
        try:
            client = await Client.connect(recorded.address, self.limits.load)
        except OrlopError as error:
            log.info("shim of %s is gone (%s): its container is cleared away", bundle.path, error)
            await self._bury(bundle, binary, recorded.address)
            return
        shim = Shim(bundle, recorded, binary, client)
        shim.joined = bool(bundle.sandbox())
        try:
            await shim.identify(self.limits.load)
            request = shim_pb2.StateRequest(id=shim.id)
            shim.exit = _exit_of(await shim.call("State", request, shim_pb2.StateResponse, self.limits.load))
        except NotFound:
            log.info("shim of %s has no task: it is ended", bundle.path)
            await self.end(shim, force=True)
            return
        except DeadlineExceeded:
            # It may be stopped or slow. Its task is shown as UNKNOWN rather than taken for dead.
            log.warning("shim of %s does not answer", bundle.path)
        except OrlopError as error:
            if not shim.is_running:
                log.info("shim of %s is gone (%s): its container is cleared away", bundle.path, error)
                await shim.close()
                await self._bury(bundle, binary, recorded.address)
                return
            log.warning("shim of %s: %s", bundle.path, error)
        self.add(shim)

    async def _watch(self, shim: Shim) -> None:
        """Waits for the shim's end, and clears away after one that we did not bring about."""
        while True:
            await shim.wait_closed()
            if shim.ending:
                return
            if shim.is_running and await shim.reconnect(self.limits.state):
                log.info("shim %s: connected again", shim.id)
                continue
            break
        shim.dead = True
        log.warning("shim %s (pid %d) is gone: its container is cleared away", shim.id, shim.pid)
        try:
            if not shim.joined:  # and the pid that another sandbox's process told may be one of a virtual machine
                shim.kill()
            await shim.close()
            await self._bury(shim.bundle, shim.binary, shim.bootstrap.address, shim)
        finally:
            if self._shims.get(shim.key) is shim:
                del self._shims[shim.key]
            shim.buried.set()

    async def follow(self, told: AsyncIterator[Envelope]) -> None:
        """Takes note of the exits that shims tell of, so that none is told again when its shim dies later."""
        async for envelope in told:
            with contextlib.suppress(DecodeError):
                exit = events.TaskExit.FromString(envelope.event.value)
                shim = self._shims.get((envelope.namespace, exit.container_id))
                if shim is not None and exit.id == exit.container_id:
                    shim.exit = exit

    async def _bury(self, bundle: Bundle, binary: str, address: str, shim: Shim | None = None) -> None:
        """Removes the container of a dead shim and tells of its exit, unless that is told already, and deletion."""
        answer = await self._run_delete(bundle, binary)
        try:
            await self.forget(bundle)
        except (OSError, OrlopError):
            log.exception("bundle %s cannot be removed", bundle.path)
        await asyncio.to_thread(remove_dead, address)
        exit = shim.exit if shim is not None else None
        if exit is None:
            exit = events.TaskExit(
                container_id=bundle.id,
                id=bundle.id,
                pid=answer.pid,
                exit_status=answer.exit_status or _KILLED,
                exited_at=common.timestamp(wire.exited_at(answer.exited_at) if answer.pid else clock.now()),
            )
            self._publisher.publish(bundle.namespace, "/tasks/exit", exit)
        deleted = events.TaskDelete(
            container_id=bundle.id, pid=exit.pid, exit_status=exit.exit_status, exited_at=exit.exited_at
        )
        self._publisher.publish(bundle.namespace, "/tasks/delete", deleted)

    async def _run_delete(self, bundle: Bundle, binary: str) -> shim_pb2.DeleteResponse:
        try:
            return await contract.delete(binary, bundle, self.settings, self.limits.cleanup)
        except OrlopError as error:
            log.warning("%s delete of %s: %s", binary or "shim", bundle.path, error)
            if isinstance(error, contract.CutOff) and binary == own_binary():
                self.remains.expect(bundle, binary)
            answer = await self._delete_instead(bundle, binary)
            if answer is not None:
                return answer
            pid = await asyncio.to_thread(end_orphan, bundle)
            if pid:
                log.warning("container of %s (pid %d) outlived its shim: it is killed", bundle.path, pid)
                return shim_pb2.DeleteResponse(exit_status=_KILLED)
            return shim_pb2.DeleteResponse(exit_status=_NOT_CLEANED)

    async def _delete_instead(self, bundle: Bundle, binary: str) -> shim_pb2.DeleteResponse | None:
        """What our own shim answers to the `delete` at which another one failed; None where it cannot do it.

        Shims that run runc or the like note its options in the bundle as ours does; that is all that it needs to delete
        the container, with its cgroup and the runtime's state.
        """
        own = own_binary()
        if not bundle.has_runtime_options or binary == own:
            return None
        try:
            return await contract.delete(own, bundle, self.settings, self.limits.cleanup)
        except OrlopError as error:
            log.warning("%s delete of %s: %s", own, bundle.path, error)
            if isinstance(error, contract.CutOff):
                self.remains.expect(bundle, own)
            return None

    def _own_address(self, bundle: Bundle) -> str:
        """Where the shim of a container that is in no group listens."""
        path = socket_path(self.settings.socket_dir, self.settings.grpc_address, bundle.namespace, bundle.id)
        return f"unix://{path}"

    def _is_shared(self, shim: Shim) -> bool:
        address = shim.bootstrap.address
        return any(other is not shim and other.bootstrap.address == address for other in self._shims.values())

    def _open_log(self, bundle: Bundle) -> None:
        shim_log = ShimLog.open(bundle.log)
        if shim_log is not None:
            self._logs[bundle.path] = shim_log

    async def close(self) -> None:
        """Lets go of all shims, which run on."""
        for shim in list(self._shims.values()):
            await shim.close()
        await self.owner.close()
        await self.remains.close()
        for shim_log in self._logs.values():
            shim_log.close()
        self._logs.clear()
        self._shims.clear()


def _exit_of(state: shim_pb2.StateResponse) -> events.TaskExit | None:
    """The exit of a task that has stopped, which its shim has told of or will."""
    if state.status != task_pb2.STOPPED:
        return None
    return events.TaskExit(
        container_id=state.id, id=state.id, pid=state.pid, exit_status=state.exit_status, exited_at=state.exited_at
    )


async def _accepts(address: str) -> bool:
    try:
        client = await Client.connect(address, 1.0)
    except OrlopError:
        return False
    await client.close()
    return True


def _socket_directory(path: Path) -> None:
    """Ours alone, also where somebody made it before us."""
    path.mkdir(0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if found.st_uid != os.geteuid():
        raise Unavailable(f"socket directory {path} belongs to uid {found.st_uid}")
    if found.st_mode & 0o777 != 0o700:
        path.chmod(0o700)
