"""Tasks of containers: each call finds the container's record, then its shim, and asks that.

Texts and codes are containerd's; clients match on them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from google.protobuf.empty_pb2 import Empty

from orlop import faults
from orlop.api.runtime.task.v3 import shim_pb2
from orlop.api.types import introspection_pb2
from orlop.api.types.runc.options import oci_pb2
from orlop.core import clock, filters, identifiers
from orlop.core.activation import MountManager
from orlop.core.container import Container, ContainerStore
from orlop.core.content import ContentStore
from orlop.core.descriptor import Descriptor
from orlop.core.scope import Scope
from orlop.core.task import IO, Exit, Metric, NewTask, Process, ProcessInfo, Status
from orlop.core.typed import FEATURES_URL, Typed
from orlop.core.wire import common
from orlop.core.wire import task as wire
from orlop.errors import AlreadyExists, InvalidArgument, NotFound, OrlopError, Unavailable, Unknown
from orlop.rpc.ttrpc import TtrpcClosed
from orlop.runtime import bootstrap as contract
from orlop.runtime import host, idmaps
from orlop.runtime.bundle import Bootstrap
from orlop.runtime.cgroup_moves import CgroupMoves
from orlop.runtime.checkpoint import store_checkpoint, unpack_checkpoint
from orlop.runtime.host import OciRuntime
from orlop.runtime.made import Made
from orlop.runtime.names import ShimBinary, binary_name
from orlop.runtime.options import (
    RUNC_OPTIONS,
    Defaults,
    OciRuntimes,
    checkpoint_options,
    parse,
    restore_path,
    runc_options,
)
from orlop.runtime.owner import Owner
from orlop.runtime.rootfs import RootMounts
from orlop.runtime.shim import Shim
from orlop.runtime.shims import ShimManager

RESTORE_DIRECTORY = "checkpoint"
"""Of a work directory: the checkpoint that its container is restored from."""

log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 10.0
"""Seconds that a daemon that ends waits for deletions under way."""


class Sandboxes(Protocol):
    """The sandboxes that run, which this room knows by their shims."""

    def find(self, namespace: str, id: str) -> Shim | None: ...


class TaskManager:
    def __init__(
        self,
        containers: ContainerStore,
        content: ContentStore,
        shims: ShimManager,
        runtime: OciRuntimes | None = None,
        runtime_root: str = "",
        *,
        mounts: MountManager | None = None,
        moves: CgroupMoves | None = None,
    ) -> None:
        self._containers = containers
        self._content = content
        self._shims = shims
        self._defaults = Defaults(runtime or OciRuntime("runc"), runtime_root)
        self._mounts = RootMounts(mounts)
        self._moves = moves or CgroupMoves()
        self.sandboxes: Sandboxes | None = None
        """Set where there is a sandbox controller."""
        self._busy: set[tuple[str, str]] = set()
        self._owner = Owner()

    def expect_start(self) -> None:
        """Prepares for the start of a container or an exec, which may come or not. Returns at once."""
        self._moves.expect()

    async def create(self, scope: Scope, new: NewTask) -> int:
        self.expect_start()
        container = await self._containers.get(scope, new.container_id)
        options = runc_options(new.options, container.runtime.name)
        restore = restore_path(new, options)
        if not new.api_address:  # clients from before 2.0 have it among the options
            new = replace(new, api_address=options.task_api_address, api_version=options.task_api_version)
        old = self._shims.find(scope.namespace, container.id)
        if old is not None and old.dead:
            await old.buried.wait()
        await self._shims.remains.settle(self._shims.bundles.at(scope.namespace, container.id))
        key = (scope.namespace, container.id)
        if key in self._busy or self._shims.find(*key) is not None:
            raise AlreadyExists(f"task {container.id}")
        self._busy.add(key)
        made = Made()
        try:
            return await self._create(scope, container, new, restore, made)
        except BaseException as error:
            # The name is free again only when nothing is left; that goes on even if this call is given up.
            await self._owner.finish(self._undo(scope, container.id, made, error), f"undoing task {container.id}")
            raise
        finally:
            if made.shim is not None and self._shims.find(*key) is made.shim:
                self._busy.discard(key)

    async def _create(self, scope: Scope, container: Container, new: NewTask, restore: str, made: Made) -> int:
        spec = container.spec.value if container.spec is not None else None
        try:
            served = self._served(scope, container, new)
            made.binary = self._binary(new.runtime_path or container.runtime.name, served)
        except OrlopError as error:
            raise error.within("failed to start shim") from None
        options = new.options if new.options is not None and new.options.value else container.runtime.options
        filled = None
        if made.binary.builtin:
            restores = bool(restore) or new.checkpoint is not None
            filled = self._defaults.applied(options, spec, restores=restores)
            options, spec = filled.options, filled.spec
        await self._refuse_mapped_mounts(new.runtime_path or container.runtime.name, options, spec)
        making = asyncio.to_thread(self._shims.bundles.create, scope.namespace, container.id, spec)
        made.making = self._owner.start(making, f"bundle of {container.id}")
        made.bundle = await asyncio.shield(made.making)
        rootfs = await self._mounts.prepare(scope, container.id, new.rootfs)
        if new.checkpoint is not None and not restore:
            # In the work directory it goes when the bundle does, and is on disk, not in memory.
            directory = made.bundle.work / RESTORE_DIRECTORY
            unpacking = unpack_checkpoint(self._content, scope, new.checkpoint, directory)
            made.unpacking = self._owner.start(unpacking, f"checkpoint of {container.id}")
            await asyncio.shield(made.unpacking)
            restore = str(directory)
        if served is not None:
            binary = served.binary or made.binary.path
            starting = self._shims.join(made.bundle, binary, container.sandbox, served.bootstrap)
        else:
            starting = self._shims.start(made.bundle, made.binary, options, spec)
        made.starting = self._owner.start(starting, f"shim of {container.id}")
        try:
            made.shim = await asyncio.shield(made.starting)
        except OrlopError as error:
            raise error.within("failed to start shim: start failed") from None
        request = shim_pb2.CreateTaskRequest(
            id=container.id,
            bundle=str(made.bundle.path),
            rootfs=common.mounts(rootfs),
            terminal=new.io.terminal,
            stdin=new.io.stdin,
            stdout=new.io.stdout,
            stderr=new.io.stderr,
            checkpoint=restore,
            options=common.any_of(options),
        )
        try:
            answer = await made.shim.call("Create", request, shim_pb2.CreateTaskResponse)
        except TtrpcClosed as error:
            raise Unknown(f"failed to create shim task: {error}") from None
        except OrlopError as error:
            made.refused = True
            raise error.within("failed to create shim task") from None
        faults.point("runtime.task.created")
        if filled is not None:
            self._defaults.learn(filled, scope.namespace, container.id)
        self._shims.add(made.shim)
        return answer.pid

    def _served(self, scope: Scope, container: Container, new: NewTask) -> _Served | None:
        """Who serves the tasks of the container's sandbox.

        A sandbox that does not run, or whose shim is too old, is no hindrance: a shim is started as usual.
        """
        served: _Served | None = None
        if container.sandbox and new.api_address:
            served = _Served(contract.parse_endpoint(new.api_address, new.api_version))
        elif container.sandbox and self.sandboxes is not None:
            shim = self.sandboxes.find(scope.namespace, container.sandbox)
            served = _Served(shim.bootstrap, shim.binary) if shim is not None else None
        return served if served is not None and served.bootstrap.version >= contract.MAX_VERSION else None

    def _binary(self, runtime: str, served: _Served | None) -> ShimBinary:
        """A task that another process serves needs no binary here."""
        try:
            return self._shims.binaries.resolve(runtime)
        except OrlopError:
            if served is None:
                raise
            return ShimBinary("")

    async def _refuse_mapped_mounts(self, runtime: str, options: Typed | None, spec: bytes | None) -> None:
        """Raises FailedPrecondition if `spec` has mounts with mapped ids and the runtime would pass over that."""
        destination = idmaps.first_mapped(spec)
        if destination:
            request = introspection_pb2.RuntimeRequest(runtime_path=runtime, options=common.any_of(options))
            info = await self.runtime_info(request)
            idmaps.refuse_unless_able(destination, runtime, info.features.value)

    async def _undo(self, scope: Scope, id: str, made: Made, error: BaseException) -> None:
        key = (scope.namespace, id)
        try:
            await made.settle()
            if made.shim is not None:
                await self._shims.end(made.shim, force=not made.refused)
            elif made.bundle is not None and made.binary is not None:
                # A shim that did not start is unknown; only an interrupted start can have left a container.
                if isinstance(error, OrlopError):
                    await self._shims.forget(made.bundle)
                else:
                    await self._shims.discard(made.bundle, made.binary.path)
            if made.bundle is not None:
                await self._mounts.release(scope, id)
        except Exception:
            log.exception("task %s cannot be undone", id)
        finally:
            self._busy.discard(key)

    async def start(self, scope: Scope, container_id: str, exec_id: str = "") -> int:
        shim = await self._shim(scope, container_id)
        request = shim_pb2.StartRequest(id=container_id, exec_id=exec_id)
        pid = (await shim.call("Start", request, shim_pb2.StartResponse)).pid
        faults.point("runtime.task.started")
        return pid

    async def delete(self, scope: Scope, container_id: str) -> Exit:
        shim = await self._shim(scope, container_id)
        # Once the shim has deleted its container the rest must follow, whether or not the caller still waits.
        return await self._owner.finish(self._delete(scope, shim), f"deletion of task {container_id}")

    async def _delete(self, scope: Scope, shim: Shim) -> Exit:
        async with shim.lock:
            if self._shims.find(*shim.key) is not shim:
                raise NotFound.verbatim(f"task {shim.id} not found")
            answer: shim_pb2.DeleteResponse | None = None
            try:
                answer = await shim.call("Delete", shim_pb2.DeleteRequest(id=shim.id), shim_pb2.DeleteResponse)
            except NotFound as error:
                missing = error
            except OrlopError as error:
                raise error.within("failed to delete task") from None
            faults.point("runtime.task.deleted")
            await self._shims.end(shim)
            await self._mounts.release(scope, shim.id)
        if answer is None:
            raise missing.within("failed to delete task")
        return Exit(answer.exit_status, wire.exited_at(answer.exited_at), answer.pid, shim.id)

    async def delete_process(self, scope: Scope, container_id: str, exec_id: str) -> Exit:
        shim = await self._shim(scope, container_id)
        if not exec_id:
            state = await self._state(shim, "")
            if state.status in (Status.RUNNING, Status.PAUSED, Status.PAUSING):
                kind = "running" if state.status is Status.RUNNING else "paused"
                raise Unknown(f"cannot delete a {kind} process")
        request = shim_pb2.DeleteRequest(id=container_id, exec_id=exec_id)
        answer = await shim.call("Delete", request, shim_pb2.DeleteResponse)
        return Exit(answer.exit_status, wire.exited_at(answer.exited_at), answer.pid, exec_id or container_id)

    async def discard(self, scope: Scope, container_id: str) -> None:
        """Ends a task by force, whether or not its container is still known. Nothing happens without a task."""
        shim = self._shims.find(scope.namespace, container_id)
        if shim is not None and not shim.dead:
            async with shim.lock:
                if self._shims.find(*shim.key) is shim:
                    await self._owner.finish(self._shims.end(shim, force=True), f"end of task {container_id}")

    async def get(self, scope: Scope, container_id: str, exec_id: str = "") -> Process:
        shim = await self._shim(scope, container_id)
        try:
            return await self._state(shim, exec_id)
        except TtrpcClosed:
            raise NotFound.verbatim("not found") from None
        except (NotFound, Unavailable):
            raise
        except OrlopError as error:
            log.warning("state of task %s: %s", container_id, error)
            return Process(container_id, exec_id or container_id)

    async def kill(
        self, scope: Scope, container_id: str, exec_id: str = "", signal: int = 15, *, everyone: bool = False
    ) -> None:
        shim = await self._shim(scope, container_id)
        request = shim_pb2.KillRequest(id=container_id, exec_id=exec_id, signal=signal, all=everyone)
        try:
            await shim.call("Kill", request, Empty)
        except TtrpcClosed:
            if not shim.ending:
                raise
            # Clients that pass on their signals do it at any time.
            raise NotFound.verbatim(f"task {container_id} not found") from None
        faults.point("runtime.task.killed")

    async def exec(self, scope: Scope, container_id: str, exec_id: str, spec: Typed | None, io: IO) -> None:
        if not exec_id:
            raise InvalidArgument.verbatim("exec id cannot be empty")
        self.expect_start()
        shim = await self._shim(scope, container_id)
        try:
            identifiers.validate(exec_id)
        except InvalidArgument as error:
            raise error.within(f"invalid exec id {exec_id}") from None
        request = shim_pb2.ExecProcessRequest(
            id=container_id, exec_id=exec_id, terminal=io.terminal, stdin=io.stdin, stdout=io.stdout,
            stderr=io.stderr, spec=common.any_of(spec),
        )  # fmt: skip
        await shim.call("Exec", request, Empty)
        faults.point("runtime.exec.added")

    async def resize_pty(self, scope: Scope, container_id: str, exec_id: str, width: int, height: int) -> None:
        shim = await self._shim(scope, container_id)
        request = shim_pb2.ResizePtyRequest(id=container_id, exec_id=exec_id, width=width, height=height)
        await shim.call("ResizePty", request, Empty)

    async def close_io(self, scope: Scope, container_id: str, exec_id: str = "", *, stdin: bool = True) -> None:
        shim = await self._shim(scope, container_id)
        if stdin:
            await shim.call("CloseIO", shim_pb2.CloseIORequest(id=container_id, exec_id=exec_id, stdin=True), Empty)
        else:
            await self._state(shim, exec_id)

    async def pause(self, scope: Scope, container_id: str) -> None:
        shim = await self._shim(scope, container_id)
        await shim.call("Pause", shim_pb2.PauseRequest(id=container_id), Empty)

    async def resume(self, scope: Scope, container_id: str) -> None:
        shim = await self._shim(scope, container_id)
        await shim.call("Resume", shim_pb2.ResumeRequest(id=container_id), Empty)

    async def pids(self, scope: Scope, container_id: str) -> list[ProcessInfo]:
        shim = await self._shim(scope, container_id)
        answer = await shim.call("Pids", shim_pb2.PidsRequest(id=container_id), shim_pb2.PidsResponse)
        return [wire.process_info_of(process) for process in answer.processes]

    async def checkpoint(self, scope: Scope, container_id: str, options: Typed | None) -> list[Descriptor]:
        container = await self._containers.get(scope, container_id)
        shim = await self._shim(scope, container_id)
        parsed = checkpoint_options(options, container.runtime.name)

        async def write(path: str) -> None:
            request = shim_pb2.CheckpointTaskRequest(id=container_id, path=path, options=common.any_of(options))
            await shim.call("Checkpoint", request, Empty)

        if parsed.image_path:
            await write(parsed.image_path)
            return []
        return await store_checkpoint(self._content, scope, write, container.spec)

    async def update(
        self, scope: Scope, container_id: str, resources: Typed | None, annotations: Mapping[str, str]
    ) -> None:
        shim = await self._shim(scope, container_id)
        request = shim_pb2.UpdateTaskRequest(
            id=container_id, resources=common.any_of(resources), annotations=annotations
        )
        await shim.call("Update", request, Empty)

    async def metrics(self, scope: Scope, filters: Sequence[str] = ()) -> list[Metric]:
        matches = _filter(filters)
        wanted = [shim for shim in self._shims.all(scope.namespace) if matches(_adaptor(shim))]

        async def ask(shim: Shim) -> Metric | None:
            request = shim_pb2.StatsRequest(id=shim.id)
            try:
                answer = await shim.call("Stats", request, shim_pb2.StatsResponse, self._shims.limits.stats)
            except OrlopError as error:
                if not isinstance(error, NotFound):
                    log.warning("metrics of task %s: %s", shim.id, error)
                return None
            return Metric(shim.id, clock.now(), common.typed_of(answer.stats))

        answers = await asyncio.gather(*(ask(shim) for shim in wanted))
        return [metric for metric in answers if metric is not None]

    async def wait(self, scope: Scope, container_id: str, exec_id: str = "") -> Exit:
        shim = await self._shim(scope, container_id)
        request = shim_pb2.WaitRequest(id=container_id, exec_id=exec_id)
        answer = await shim.call("Wait", request, shim_pb2.WaitResponse)
        return Exit(answer.exit_status, wire.exited_at(answer.exited_at))

    async def runtime_info(self, request: introspection_pb2.RuntimeRequest) -> introspection_pb2.RuntimeInfo:
        """What a runtime says of itself. For our own shim that is what its OCI runtime says."""
        runtime = request.runtime_path or "io.containerd.runc.v2"
        options = common.optional_typed(request, "options")
        binary = self._shims.binaries.resolve(runtime)
        if not binary.builtin:
            return await contract.info(binary.path, options, self._shims.settings)
        parsed = oci_pb2.Options()
        if options is not None and options.value and options.type_name == RUNC_OPTIONS:
            parse(parsed, options.value)
        answer = introspection_pb2.RuntimeInfo(
            name=binary_name(runtime) or runtime,
            version=introspection_pb2.RuntimeVersion(version=self._shims.settings.version),
            options=request.options if request.HasField("options") else None,
        )
        document = await asyncio.to_thread(host.features, parsed.binary_name or self._defaults.runtime.for_spec(None))
        if document is not None:
            answer.features.type_url = FEATURES_URL
            answer.features.value = document
        return answer

    async def load_existing(self) -> None:
        """Finds the tasks of an earlier daemon again."""

        async def runtime_of(namespace: str, id: str) -> str:
            try:
                return (await self._containers.get(Scope(namespace), id)).runtime.name
            except NotFound:
                return ""

        await self._shims.load_existing(runtime_of)

    async def close(self) -> None:
        """Finishes the deletions under way, unless a shim does not answer. Tasks run on."""
        await self._moves.close()
        await self._owner.drain(CLOSE_TIMEOUT)

    async def _shim(self, scope: Scope, container_id: str) -> Shim:
        await self._containers.get(scope, container_id)
        shim = self._shims.find(scope.namespace, container_id)
        # One that is ending has deleted its container.
        if shim is None or shim.dead or shim.ending:
            raise NotFound.verbatim(f"task {container_id} not found")
        return shim

    async def _state(self, shim: Shim, exec_id: str) -> Process:
        request = shim_pb2.StateRequest(id=shim.id, exec_id=exec_id)
        return wire.state_of(
            await shim.call("State", request, shim_pb2.StateResponse, self._shims.limits.state), shim.id
        )

    async def list(self, scope: Scope) -> list[Process]:
        async def ask(shim: Shim) -> Process | None:
            try:
                return await self._state(shim, "")
            except OrlopError as error:
                if not isinstance(error, NotFound):
                    log.warning("state of task %s: %s", shim.id, error)
                return None

        answers = await asyncio.gather(*(ask(shim) for shim in self._shims.all(scope.namespace)))
        return [process for process in answers if process is not None]


@dataclass(frozen=True, slots=True)
class _Served:
    bootstrap: Bootstrap
    binary: str = ""
    """Of a shim of ours."""


def _filter(texts: Sequence[str]) -> filters.Filter:
    try:
        return filters.parse(texts)
    except InvalidArgument as error:
        # The reference passes this error on as a plain one.
        raise Unknown(str(error)) from None


def _adaptor(shim: Shim) -> filters.Adaptor:
    fields = {"id": shim.id, "namespace": shim.namespace}

    def value(path: Sequence[str]) -> tuple[str, bool]:
        key = ".".join(path)
        return fields.get(key, ""), key in fields

    return value
