"""A container: its runtime, its init, its execs, and what may be done with it in which state."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orlop import faults
from orlop.api.runtime.task.v3.shim_pb2 import CreateTaskRequest
from orlop.api.types.runc.options.oci_pb2 import CheckpointOptions, Options
from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OrlopError, Unknown
from orlop.shim import criu, files, labels, loop, rootfs
from orlop.shim.process import CREATED, PAUSED, PAUSING, RUNNING, STOPPED, Process
from orlop.shim.reaper import Reaper
from orlop.shim.runc import DEFAULT_ROOT, Runtime, RuntimeFailure
from orlop.shim.stdio import Stdio

log = logging.getLogger(__name__)

_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*", re.ASCII)
_SIGKILL = 9
_NO_CGROUP = "lstat : no such file or directory"
"""What runc says of a container without a cgroup (rootless mode) whose processes it is asked to signal."""

_REFUSALS: Mapping[str, Mapping[str, str]] = {
    "start": {
        RUNNING: "cannot start a running process",
        PAUSED: "cannot start a paused process",
        STOPPED: "cannot start a stopped process",
    },
    "pause": {
        CREATED: "cannot pause task in created state",
        PAUSED: "cannot pause a paused container",
        STOPPED: "cannot pause a stopped container",
    },
    "resume": {
        CREATED: "cannot resume task in created state",
        RUNNING: "cannot resume a running process",
        STOPPED: "cannot resume a stopped container",
    },
    "exec": {PAUSED: "cannot exec in a paused state", STOPPED: "cannot exec in a stopped state"},
    "checkpoint": {
        CREATED: "cannot checkpoint a task in created state",
        STOPPED: "cannot checkpoint a stopped container",
    },
    "update": {STOPPED: "cannot update a stopped container"},
    "delete": {RUNNING: "cannot delete a running process", PAUSED: "cannot delete a paused process"},
}


@dataclass(frozen=True, slots=True)
class Restore:
    """The checkpoint that a container is made from when it is started."""

    image_path: str
    work_path: str


class Container:
    """One container of this shim. Made by `create`; every method raises the vocabulary of `orlop.errors`."""

    def __init__(self, id: str, bundle: str, namespace: str, runtime: Runtime, options: Options) -> None:
        self.id = id
        self.bundle = bundle
        self.namespace = namespace
        self.runtime = runtime
        self.options = options
        self.init = Process("", Stdio())
        self.execs: dict[str, Process] = {}
        self.restore: Restore | None = None
        self.rootfs = os.path.join(bundle, "rootfs")
        self._runtime_lock = loop.Lock()
        """Held for pause, resume, update, checkpoint: the runtime's state file has one writer at a time."""

    @classmethod
    async def create(cls, reaper: Reaper, namespace: str, request: CreateTaskRequest) -> Container:
        """Mounts the root file system and has the runtime create the container; all is undone on failure."""
        options = Options()
        if request.options.value and request.options.type_url.rpartition("/")[2] == Options.DESCRIPTOR.full_name:
            options.ParseFromString(request.options.value)
        runtime = runtime_of(reaper, request.bundle, namespace, options)
        files.write(os.path.join(request.bundle, "runtime"), runtime.binary.encode())
        files.write(os.path.join(request.bundle, "options.json"), _options_json(options))
        container = cls(request.id, request.bundle, namespace, runtime, options)
        stdio = Stdio(request.stdin, request.stdout, request.stderr, request.terminal)
        container.init = Process("", stdio)
        if request.checkpoint:
            work = options.criu_work_path or os.path.join(request.bundle, "work")
            container.restore = Restore(request.checkpoint, work)
        with contextlib.suppress(FileNotFoundError):
            labels.refuse_missing(files.read(os.path.join(request.bundle, "config.json")))
        rootfs.mount_all(request.rootfs, container.rootfs)
        faults.point("shim.create.mounted")
        try:
            await container._open_streams(container.init)
            if container.restore is None:
                await container._create()
            faults.point("shim.create.created")
        except BaseException:
            container.init.close_streams()
            container._unmount()
            raise
        return container

    def process(self, exec_id: str) -> Process:
        """Raises NotFound."""
        if not exec_id:
            return self.init
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFound(f"process does not exist {exec_id}") from None

    def state_of(self, process: Process) -> str:
        """The state of `process`; a paused container makes its execs paused too."""
        if process.state != STOPPED and self.init.state in (PAUSED, PAUSING):
            return self.init.state
        return process.state

    async def start(self) -> None:
        """Starts the init. Call with its lock held."""
        self._refuse("start", self.init)
        if self.restore is not None and self.init.child is None:
            try:
                await self._restored(self.restore)
            except BaseException:
                self.init.over.set()
                raise
        else:
            if self.init.streams is not None:
                self.init.streams.before_start()
            await self.runtime.start(self.id)
            faults.point("shim.start.started")
        if self.init.streams is not None:
            self.init.streams.started()
        self.init.state = RUNNING

    def add_exec(self, id: str, stdio: Stdio, spec: bytes) -> None:
        """Notes a process to be started later."""
        if self.restore is not None and self.init.state == CREATED:
            raise Unknown("cannot exec in a created state")
        self._refuse("exec", self.init)
        if _IDENTIFIER.fullmatch(id) is None:
            raise InvalidArgument(f"invalid exec id {id}")
        if id in self.execs:
            raise AlreadyExists(f"id {id}")
        try:
            process = json.loads(spec)
            process["terminal"] = stdio.terminal
        except (ValueError, TypeError) as error:
            raise Unknown(f"exec {id}: its process is no JSON object: {error}") from error
        self.execs[id] = ExecProcess(id, stdio, process)

    async def start_exec(self, process: ExecProcess) -> None:
        """Starts an exec. Call with its lock held; if it fails the exec stays created and is over."""
        if self.init.has_died or self.init.exit is not None:
            raise FailedPrecondition(f"container {self.id} init process is not running")
        self._refuse("start", process)
        if self.init.state == PAUSED:
            raise Unknown("cannot start a paused process")
        if process.over.is_set():
            raise Unknown("cannot start a stopped process")
        path = os.path.join(self.bundle, f"{process.id}.process.json")
        pid_file = self._pid_file(process)
        try:
            await self._open_streams(process)
            if process.streams is not None:
                if process.input_ended:
                    process.streams.close_stdin()
                process.streams.before_start()
            files.write(path, json.dumps(process.spec).encode())
            with self.runtime.reaper.watch() as watch:
                await process.launch(
                    pid_file,
                    watch,
                    lambda streams, console: self.runtime.exec(
                        self.id, path, pid_file, streams.files, console_socket=console
                    ),
                )
        except BaseException:
            process.close_streams()
            process.over.set()
            raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        if process.streams is not None:
            process.streams.started()
        process.state = RUNNING

    async def delete(self) -> None:
        """Deletes the container from the runtime and unmounts its root. Call with the init's lock held."""
        self._refuse("delete", self.init)
        if self.init.streams is not None:
            await self.init.streams.finished()
        # It begins in the next turn of the loop, when the runtime runs. Hooks of the runtime may look at the root.
        unmounting = None if self._has_hooks() else loop.create_task(self._unmounted())
        await self.runtime.delete(self.id)
        faults.point("shim.delete.deleted")
        self.init.close_streams()
        for process in self.execs.values():
            process.close_streams()
        await (unmounting or self._unmounted())

    async def delete_exec(self, process: Process) -> None:
        self._refuse("delete", process)
        if process.streams is not None:
            await process.streams.finished()
        process.close_streams()
        process.over.set()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._pid_file(process))
        del self.execs[process.id]

    async def kill(self, number: int, *, all: bool) -> None:
        """Signals the init, or `all` processes of the container."""
        if self.init.exit is not None and not all:
            raise NotFound("process already finished")
        if self.init.state == RUNNING and self._needs_init_alone(number, all):
            self.init.signal(number)
            return
        try:
            await self.runtime.kill(self.id, number, all=all)
        except RuntimeFailure as error:
            text = str(error).lower()
            if all and _NO_CGROUP in text and not self._shares_pids():
                # What the kernel ends with the init, or the init passes on, needs no list of a cgroup.
                await self.kill(number, all=False)
                return
            if any(words in text for words in ("process already finished", "container not running", "no such process")):
                if all and self.init.exit is not None:
                    return
                raise NotFound("process already finished") from error
            if "does not exist" in text:
                raise NotFound("no such container") from error
            raise Unknown(f"unknown error after kill: {error}") from error

    async def kill_all(self) -> None:
        """Ends what the init left behind where it did not have a pid namespace of its own."""
        if not self._shares_pids():
            return
        try:
            await self.runtime.kill(self.id, _SIGKILL, all=True)
        except Unknown as error:
            log.warning("container %s: what its init left could not be killed: %s", self.id, error)

    async def pause(self) -> None:
        async with self._runtime_lock:
            self._refuse("pause", self.init)
            self.init.state = PAUSING
            try:
                await self.runtime.pause(self.id)
            except BaseException:
                if self.init.state == PAUSING:
                    self.init.state = RUNNING
                raise
            if self.init.state == PAUSING:
                self.init.state = PAUSED

    async def resume(self) -> None:
        async with self._runtime_lock:
            self._refuse("resume", self.init)
            await self.runtime.resume(self.id)
            if self.init.state == PAUSED:
                self.init.state = RUNNING

    async def update(self, resources: bytes) -> None:
        """Changes the limits to `resources`, a runtime-spec document. crun takes anything else for an empty one."""
        async with self._runtime_lock:
            self._refuse("update", self.init)
            _refuse_other_than_object(resources)
            await self.runtime.update(self.id, resources)

    async def pids(self) -> list[int]:
        if self.init.exit is not None:
            return []
        return await self.runtime.pids(self.id)

    async def checkpoint(self, path: str, options: CheckpointOptions) -> None:
        """Writes a checkpoint to the directory `path`."""
        async with self._runtime_lock:
            self._refuse("checkpoint", self.init)
            work = options.work_path or os.path.join(self.bundle, "work", "criu-work")
            arguments = ["--image-path", path, "--work-path", work]
            if options.parent_path:
                arguments += ["--parent-path", options.parent_path]
            for wanted, flag in (
                (options.open_tcp, "--tcp-established"),
                (options.external_unix_sockets, "--ext-unix-sk"),
                (options.terminal, "--shell-job"),
                (options.file_locks, "--file-locks"),
                (not options.exit, "--leave-running"),
            ):
                if wanted:
                    arguments.append(flag)
            for name in options.empty_namespaces:
                arguments += ["--empty-ns", name]
            try:
                outside = criu.streams_outside(self.init.pid)
                told = criu.leaving_out(outside, path, self._criu_configuration, self.runtime.environment)
            except OSError as error:
                raise Unknown(f"checkpoint to {path}: {(error.strerror or str(error)).lower()}") from error
            try:
                await self.runtime.checkpoint(self.id, arguments, told)
            except RuntimeFailure as error:
                log_path = os.path.join(work, "dump.log")
                raise Unknown(f"{error}{criu.reason(log_path)} path= {log_path}") from error

    async def _create(self) -> None:
        pid_file = os.path.join(self.bundle, "init.pid")
        with self.runtime.reaper.watch() as watch:
            try:
                await self.init.launch(
                    pid_file,
                    watch,
                    lambda streams, console: self.runtime.create(
                        self.id,
                        self.bundle,
                        pid_file,
                        streams.files,
                        console_socket=console,
                        no_pivot=self.options.no_pivot_root,
                        no_new_keyring=self.options.no_new_keyring,
                    ),
                )
            except BaseException as error:
                if not isinstance(error.__cause__, RuntimeFailure):  # which leaves nothing by itself
                    with contextlib.suppress(OrlopError):
                        await self.runtime.delete(self.id, force=True)
                raise

    async def _restored(self, restore: Restore) -> None:
        pid_file = os.path.join(self.bundle, "init.pid")
        try:
            given = self.init.streams.files if self.init.streams is not None else {}
            told = criu.taking_over(restore.image_path, given, self._criu_configuration, self.runtime.environment)
        except OSError as error:
            raise Unknown(f"restore from {restore.image_path}: {(error.strerror or str(error)).lower()}") from error
        if self.init.streams is not None:
            self.init.streams.before_start()
        with self.runtime.reaper.watch() as watch, criu.told(os.path.join(restore.work_path, "restore.log")):
            await self.init.launch(
                pid_file,
                watch,
                lambda streams, console: self.runtime.restore(
                    self.id,
                    self.bundle,
                    pid_file,
                    streams.files,
                    image_path=restore.image_path,
                    work_path=restore.work_path,
                    console_socket=console,
                    no_pivot=self.options.no_pivot_root,
                    environment=told,
                ),
            )

    def _pid_file(self, process: Process) -> str:
        """Of an exec, whose id may be `init`."""
        return os.path.join(self.bundle, f"{process.id}.exec.pid")

    @property
    def _criu_configuration(self) -> str:
        return os.path.join(self.bundle, "work", "criu.conf")

    async def _open_streams(self, process: Process) -> None:
        spawn = self.runtime.reaper.spawn
        await process.open_streams(self.id, self.namespace, spawn, self.options.io_uid, self.options.io_gid)

    def _refuse(self, verb: str, process: Process) -> None:
        text = _REFUSALS[verb].get(RUNNING if process.state == PAUSING else process.state)
        if text is not None:
            raise Unknown(text)

    def _needs_init_alone(self, number: int, all: bool) -> bool:
        """Whether no runtime need be started to send the signal: it is the init's, or the kernel ends all with it."""
        return not all or (number == _SIGKILL and not self._shares_pids())

    def _shares_pids(self) -> bool:
        """Whether the container has no pid namespace of its own, so that the kernel does not end it with its init."""
        try:
            spec = json.loads(files.read(os.path.join(self.bundle, "config.json")))
            namespaces = spec.get("linux", {}).get("namespaces") or []
        except (OSError, ValueError, AttributeError):
            return True
        return not any(namespace.get("type") == "pid" and not namespace.get("path") for namespace in namespaces)

    def _has_hooks(self) -> bool:
        """Whether the spec may have hooks: whether it has the word, as all of it need not be parsed for that."""
        try:
            return b'"hooks"' in files.read(os.path.join(self.bundle, "config.json"))
        except OSError:
            return False

    async def _unmounted(self) -> None:
        try:
            rootfs.unmount_all(self.rootfs)
        except OSError as error:
            raise Unknown(f"failed rootfs umount: {(error.strerror or '').lower()}") from error

    def _unmount(self) -> None:
        with contextlib.suppress(OSError):
            rootfs.unmount_all(self.rootfs)


class ExecProcess(Process):
    """A process that was added to a container with the runtime-spec process `spec`."""

    def __init__(self, id: str, stdio: Stdio, spec: dict[str, Any]) -> None:
        super().__init__(id, stdio)
        self.spec = spec
        self.input_ended = False

    def close_stdin(self) -> None:
        self.input_ended = True
        super().close_stdin()


def _refuse_other_than_object(resources: bytes) -> None:
    """Raises Unknown; crun would take them for no resources at all."""
    try:
        found = json.loads(resources)
    except ValueError as error:
        raise Unknown(f"resources are no JSON: {error}") from error
    if not isinstance(found, dict):
        raise Unknown(f"resources are no JSON object but a {type(found).__name__}")


@functools.cache
def environment() -> Mapping[bytes, bytes]:
    """What runtimes are run with: this process's environment without what is for it alone."""
    return {key: value for key, value in os.environb.items() if key != b"NOTIFY_SOCKET"}


def runtime_of(reaper: Reaper, bundle: str, namespace: str, options: Options) -> Runtime:
    """The runtime that `options` choose for the container of `bundle`."""
    return Runtime(
        reaper,
        binary=options.binary_name or "runc",
        root=os.path.join(options.root or DEFAULT_ROOT, namespace),
        log=os.path.join(bundle, "log.json"),
        systemd_cgroup=options.systemd_cgroup,
        environment=environment(),
    )


def read_options(bundle: str) -> Options | None:
    """The options that `create` noted in `bundle`; None if it did not come to that, and so not to a container."""
    try:
        known = json.loads(files.read(os.path.join(bundle, "options.json")))
        fields = Options.DESCRIPTOR.fields_by_name
        return Options(**{name: value for name, value in known.items() if name in fields})
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None


def _options_json(options: Options) -> bytes:
    return json.dumps({field.name: value for field, value in options.ListFields()}).encode()
