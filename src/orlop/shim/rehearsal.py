"""The life of a container that is none, before the fork server's heap is frozen.

What Python does only the first times that code runs (inline caches, tables that grow, strings that are interned,
modules that come late) is so done once, in pages that all shims share, and not by each shim in pages of its own.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import socket
from collections.abc import Mapping, Sequence

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from orlop import faults
from orlop.api.runtime.task.v3 import shim_pb2 as v3
from orlop.api.services.ttrpc.events.v1 import events_pb2
from orlop.api.types.runc.options.oci_pb2 import Options
from orlop.errors import OrlopError
from orlop.rpc.service import Call
from orlop.shim import files, loop
from orlop.shim.publisher import Publisher
from orlop.shim.reaper import Child, Exit, Reaper
from orlop.shim.task import TaskService
from orlop.shim.ttrpc import Client, Interface, Server, Service

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36
_TIMEOUT = 5.0
_NAMESPACE = "rehearsal"
_CONFIG = b'{"ociVersion": "1.0.2", "linux": {"namespaces": [{"type": "pid"}]}}'
_TASKS = v3.DESCRIPTOR.services_by_name["Task"].full_name
_EVENTS = Interface.of(events_pb2.DESCRIPTOR.services_by_name["Events"])
_libc = ctypes.CDLL(None)


def rehearse(directory: str) -> None:
    """Plays one life in `directory`, which is made and removed. No failure of it matters: shims are larger then."""
    shutil.rmtree(directory, ignore_errors=True)
    try:
        os.mkdir(directory, 0o700)
        with faults.suspended():
            loop.run(_play(directory))
    except (OSError, OrlopError) as error:
        log.warning("no rehearsal: %s", error)
    finally:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        shutil.rmtree(directory, ignore_errors=True)


class _Reaper(Reaper):
    """Plays the runtime: its commands succeed at once, and the container is a process that sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.init: Child | None = None

    def spawn(self, argv: Sequence[str], environment: Mapping[bytes, bytes], files: Mapping[int, int]) -> Child:
        if "create" in argv:
            self.init = super().spawn(["sleep", str(_TIMEOUT)], environment, {})
            _note(argv[argv.index("--pid-file") + 1], self.init.pid)
        elif "kill" in argv and self.init is not None:
            self.init.kill(signal.SIGKILL)
        return self.ended(Exit(0, 0, 0))

    def adopt(self, pid: int) -> Child:
        return self.init if self.init is not None and self.init.pid == pid else super().adopt(pid)


class _Events:
    """Plays the daemon."""

    async def Forward(self, request: Message, call: Call) -> Empty:
        return Empty()


async def _play(directory: str) -> None:
    reaper = _Reaper()
    reaper.install()
    daemon = Server({_EVENTS.name: Service(_EVENTS, _Events())}, _listen(f"{directory}/e"), os.geteuid())
    publisher = Publisher(_NAMESPACE, f"{directory}/e")
    sending = loop.create_task(publisher.run())
    service = TaskService(_NAMESPACE, reaper, publisher, loop.Event().set)
    shim = Server(service.services(), _listen(f"{directory}/t"), os.geteuid())
    clients = Client(f"{directory}/t"), Client(f"{directory}/t")
    try:
        await _live(directory, *clients)
    finally:
        if reaper.init is not None:
            reaper.init.kill(signal.SIGKILL)
            await loop.all_done([reaper.init.exit], _TIMEOUT)
        for client in clients:
            client.abort()
        await shim.close(_TIMEOUT)
        await service.settled(_TIMEOUT)
        await publisher.flush(_TIMEOUT)
        service.close()
        sending.cancel()
        await loop.all_done([sending], _TIMEOUT)
        await daemon.close(_TIMEOUT)


async def _live(directory: str, client: Client, waiting: Client) -> None:
    """What a daemon asks of a shim whose container ends by a signal."""
    bundle = os.path.join(directory, "b")
    os.makedirs(os.path.join(bundle, "rootfs"))
    files.write(os.path.join(bundle, "config.json"), _CONFIG)
    fifos = [os.path.join(bundle, name) for name in ("in", "out", "err")]
    for fifo in fifos:
        os.mkfifo(fifo)
    create = v3.CreateTaskRequest(id=_NAMESPACE, bundle=bundle, stdin=fifos[0], stdout=fifos[1], stderr=fifos[2])
    create.options.type_url, create.options.value = Options.DESCRIPTOR.full_name, Options().SerializeToString()
    await _call(client, "Create", create)
    await _call(client, "Connect", v3.ConnectRequest(id=_NAMESPACE))
    end = loop.create_task(_call(waiting, "Wait", v3.WaitRequest(id=_NAMESPACE)))
    try:
        await _call(client, "Start", v3.StartRequest(id=_NAMESPACE))
        await _call(client, "State", v3.StateRequest(id=_NAMESPACE))
        await _call(client, "Kill", v3.KillRequest(id=_NAMESPACE, signal=signal.SIGKILL))
        await end
    finally:
        end.cancel()
    await _call(client, "Delete", v3.DeleteRequest(id=_NAMESPACE))


async def _call(client: Client, method: str, request: Message) -> None:
    metadata = {"containerd-namespace-ttrpc": _NAMESPACE}
    await client.call(_TASKS, method, request, timeout=_TIMEOUT, metadata=metadata)


def _note(path: str, pid: int) -> None:
    files.write(path, b"%d" % pid)


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(path)
    listener.listen()
    return listener
