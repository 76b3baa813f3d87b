"""The plugins of this room: the shims, the tasks, and the monitor of tasks."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orlop.core import platform
from orlop.core.plugin import InitContext, PluginType, Registration
from orlop.errors import OrlopError
from orlop.runtime.names import BUILTIN

if TYPE_CHECKING:
    from orlop.runtime.forkserver import ForkServer

log = logging.getLogger(__name__)

TASK_SERVICE_DIRECTORY = "io.containerd.runtime.v2.task"
"""Bundles lie below this name in the daemon's root and state, as clients and tools expect."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class ShimConfig(msgspec.Struct, kw_only=True):
    env: list[str] = []
    socket_dir: str = ""


class TaskConfig(msgspec.Struct, kw_only=True):
    platforms: list[str] = []
    builtin: list[str] = msgspec.field(default_factory=lambda: list(BUILTIN))
    """The runtimes that our own shim serves; every other one is executed as a shim binary."""
    oci_runtime: str = "auto"
    """The OCI runtime of containers that name none: a program, or `auto` for crun where it works, else runc."""


class RestartConfig(msgspec.Struct, kw_only=True):
    interval: str = "10s"


class MonitorConfig(msgspec.Struct, kw_only=True):
    no_prometheus: bool = False


async def _shims(context: InitContext) -> Any:
    from orlop.errors import InvalidArgument
    from orlop.runtime.bootstrap import ShimSettings
    from orlop.runtime.bundle import Bundles
    from orlop.runtime.forkserver import ForkServer
    from orlop.runtime.names import ShimBinaries
    from orlop.runtime.shims import DEFAULT_SOCKET_DIR, Limits, ShimManager

    config: ShimConfig = context.config
    directory = config.socket_dir or DEFAULT_SOCKET_DIR
    if not os.path.isabs(directory) or len(directory) > 42:
        raise InvalidArgument(f"socket_dir {directory!r}: an absolute path of at most 42 characters is needed")
    daemon = context.daemon
    state, root = daemon.state / TASK_SERVICE_DIRECTORY, daemon.root / TASK_SERVICE_DIRECTORY
    for path in (state, root):
        path.mkdir(0o711, parents=True, exist_ok=True)
        path.chmod(0o711)
    bundles = Bundles(state, root)
    await asyncio.to_thread(_drop_other_boot, bundles, daemon.state / "boot-id")
    beside = Path(sys.executable).with_name("orlopd")
    settings = ShimSettings(
        grpc_address=daemon.grpc_address,
        ttrpc_address=daemon.ttrpc_address,
        daemon_binary=str(beside if beside.exists() else Path(sys.argv[0]).absolute()),
        version=daemon.version,
        log_level=daemon.log_level,
        socket_dir=config.socket_dir,
        environment=tuple(config.env),
    )
    seconds = {name.removeprefix("io.containerd.timeout."): value for name, value in daemon.timeouts.items()}
    usual = Limits()
    limits = Limits(
        load=seconds.get("shim.load", usual.load),
        cleanup=seconds.get("shim.cleanup", usual.cleanup),
        shutdown=seconds.get("shim.shutdown", usual.shutdown),
        state=seconds.get("task.state", usual.state),
        stats=seconds.get("metrics.shimstats", usual.stats),
    )
    forkserver = ForkServer(daemon.state / "forkserver.sock")
    publisher = context.get(PluginType.EVENT)
    manager = ShimManager(bundles, ShimBinaries(), settings, publisher, forkserver, limits)
    manager.owner.start(manager.follow(publisher.subscribe(['topic=="/tasks/exit"'])), "exits that shims tell of")
    context.ready.append(partial(_start_ahead, forkserver))
    context.closing += [forkserver.stop, manager.close]
    return manager


async def _start_ahead(forkserver: ForkServer) -> None:
    """Starts it, so that the first container need not wait. Without it shims are executed: no reason to end."""
    try:
        await forkserver.start()
    except (OSError, OrlopError) as error:
        log.warning("%s: it is tried again when there is a shim to be made", error)


async def _tasks(context: InitContext) -> Any:
    from orlop.runtime import host
    from orlop.runtime.cgroup_moves import SIGNS, CgroupMoves
    from orlop.runtime.names import ShimBinaries
    from orlop.runtime.tasks import TaskManager

    config: TaskConfig = context.config
    metadata = context.get(PluginType.METADATA)
    shims = context.get(PluginType.SHIM)
    shims.binaries = ShimBinaries(tuple(config.builtin))
    runtime = await asyncio.to_thread(host.detect, config.oci_runtime or host.AUTOMATIC)
    context.meta.exports["oci-runtime"] = str(runtime)
    if runtime.reason:
        context.meta.exports["oci-runtime_why"] = runtime.reason
    context.meta.platforms = [platform.host()]
    context.meta.exports["log-uri-schemes"] = "fifo,binary,binary-v2,file"
    runtime_root = str(context.daemon.state / "runc")
    mounts = context.get(PluginType.MOUNT_MANAGER)
    moves = CgroupMoves()
    moves.follow(context.get(PluginType.EVENT).subscribe(SIGNS))
    manager = TaskManager(
        metadata.containers, metadata.content, shims, runtime, runtime_root, mounts=mounts, moves=moves
    )
    context.closing.append(manager.close)
    await manager.load_existing()
    return manager


async def _monitor(context: InitContext) -> Any:
    """Shims tell of killed processes themselves; this plugin is what clients look for in the list."""
    context.meta.platforms = [platform.host()]
    return context.get(PluginType.EVENT)


async def _restarts(context: InitContext) -> Any:
    from orlop.core import duration
    from orlop.runtime.restart import POLICIES, RestartMonitor

    config: RestartConfig = context.config
    context.meta.capabilities += POLICIES  # clients refuse a policy that is not listed
    metadata = context.get(PluginType.METADATA)
    monitor = RestartMonitor(
        metadata.namespaces,
        metadata.containers,
        metadata.snapshots,
        context.get(PluginType.RUNTIME),
        context.get(PluginType.EVENT),
        duration.parse(config.interval) / 1e9 or 10.0,
    )
    context.ready.append(monitor.start)
    context.closing.append(monitor.close)
    return monitor


def _drop_other_boot(bundles: Any, path: Path) -> None:
    """After a reboot every bundle is stale: its shim is gone, its pids and sockets are somebody else's."""
    current = BOOT_ID.read_text().strip()
    recorded = path.read_text().strip() if path.exists() else current
    if recorded != current:
        for bundle in list(bundles.walk()):
            bundle.remove()
    path.write_text(current)


REGISTRATIONS: tuple[Registration, ...] = (
    Registration(PluginType.TASK_MONITOR, "cgroups", _monitor, (PluginType.EVENT,), MonitorConfig),
    Registration(
        PluginType.CONTAINER_MONITOR,
        "restart",
        _restarts,
        (PluginType.METADATA, PluginType.EVENT, PluginType.RUNTIME),
        RestartConfig,
    ),
    Registration(PluginType.SHIM, "manager", _shims, (PluginType.EVENT, PluginType.METADATA), ShimConfig),
    Registration(
        PluginType.RUNTIME,
        "task",
        _tasks,
        (PluginType.SHIM, PluginType.MOUNT_MANAGER, PluginType.WARNING, PluginType.METADATA, PluginType.EVENT),
        TaskConfig,
    ),
)
