"""A shim from a fork server of the test's own, driven over ttrpc without a daemon, with the real OCI runtime."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import oci_runtime
from google.protobuf.empty_pb2 import Empty
from patience import patient

from orlop.api.runtime.task.v3 import shim_pb2 as api
from orlop.api.types.runc.options.oci_pb2 import Options
from orlop.errors import OrlopError
from orlop.rpc.ttrpc import Client
from orlop.shim.request import ForkAnswer, ForkRequest

SERVICE = "containerd.task.v3.Task"
_FORK_SERVER = ("-m", "orlop.shim.forkserver")


class Shim:
    """A shim from a fork server of the test's own, and a connection to it."""

    def __init__(self, path: Path, id: str) -> None:
        self.path, self.id, self.bundle = path, id, path / id
        self.pid = 0
        self.client: Client

    async def call(self, method: str, **fields: Any) -> Any:
        fields.setdefault("id", self.id)
        names = {"Exec": "ExecProcess", "Create": "CreateTask", "Update": "UpdateTask"}
        request = getattr(api, names.get(method, method) + "Request")(**fields)
        answer = getattr(api, names.get(method, method) + "Response", None)
        if answer is None or method in ("Exec",):
            answer = Empty
        timeout = None if method == "Wait" else patient(30)  # a wait with a deadline keeps the shim awake
        async with asyncio.timeout(patient(60)):
            return await self.client.call(SERVICE, method, request, answer, timeout=timeout)

    async def create(
        self,
        *args: str,
        terminal: bool = False,
        namespaces: tuple[str, ...] = ("pid", "mount", "ipc", "uts"),
        **fields: Any,
    ) -> Any:
        rootfs = self.bundle / "rootfs" / "bin"
        rootfs.mkdir(parents=True)
        shutil.copy("/bin/busybox", rootfs / "busybox")
        (self.bundle / "rootfs" / "dev").mkdir()  # crun does not make it
        for name in ("sh", "cat", "sleep", "echo", "true", "stty"):
            (rootfs / name).symlink_to("busybox")
        spec: dict[str, Any] = {
            "ociVersion": "1.0.2",
            "process": {
                "args": list(args),
                "cwd": "/",
                "env": ["PATH=/bin"],
                "terminal": terminal,
                "user": {"uid": 0, "gid": 0},
            },
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "namespaces": [{"type": kind} for kind in namespaces],
                "cgroupsPath": f"/orlop-test/{os.getpid()}-{self.path.name}-{self.id}",
            },
        }
        if terminal:
            spec["mounts"] += [
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {
                    "destination": "/dev/pts",
                    "type": "devpts",
                    "source": "devpts",
                    "options": ["newinstance", "ptmxmode=0666"],
                },
            ]
        (self.bundle / "config.json").write_text(json.dumps(spec))
        options = Options(root=str(self.path / "runc"), binary_name=oci_runtime.chosen().name)
        request: dict[str, Any] = {"bundle": str(self.bundle), "terminal": terminal, **fields}
        request["options"] = {"type_url": Options.DESCRIPTOR.full_name, "value": options.SerializeToString()}
        return await self.call("Create", **request)

    async def add_exec(self, exec_id: str, *args: str, **fields: Any) -> None:
        spec = {"args": list(args), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
        await self.call("Exec", exec_id=exec_id, spec={"type_url": "x", "value": json.dumps(spec).encode()}, **fields)

    async def finish(self) -> Any:
        with contextlib.suppress(OrlopError):
            await self.call("Kill", signal=signal.SIGKILL, all=True)
        await self.call("Wait")
        return await self.call("Delete")


def ask(path: Path, request: ForkRequest) -> ForkAnswer:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(patient(20))
        peer.connect(str(path))
        peer.send(request.encode())
        return ForkAnswer.decode(peer.recv(1 << 16))


@contextlib.asynccontextmanager
async def fork_server(path: Path, program: tuple[str, ...] = _FORK_SERVER) -> AsyncIterator[subprocess.Popen[bytes]]:
    """One whose shims sleep as soon as they can, so that whatever is tested is tested over that too."""
    server = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-I", *program, "--socket", str(path), "--rest", "0.01"]
    )
    try:
        while not _accepts(path):
            assert server.poll() is None
            await asyncio.sleep(0.01)
        yield server
    finally:
        server.terminate()
        server.wait(patient(10))


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        try:
            peer.connect(str(path))
        except OSError:
            return False
        return True


@contextlib.asynccontextmanager
async def running_shim(
    path: Path, id: str = "one", ttrpc_address: str = "", program: tuple[str, ...] = _FORK_SERVER
) -> AsyncIterator[Shim]:
    """A shim that is gone, with its containers, when the context ends."""
    shim = Shim(path, id)
    shim.bundle.mkdir()
    async with fork_server(path / "fork.sock", program):
        request = ForkRequest("test", id, id, str(shim.bundle), str(path / "s" / "sock"), ttrpc_address=ttrpc_address)
        answer = await asyncio.to_thread(ask, path / "fork.sock", request)
        assert answer.error == ""
        shim.pid = answer.pid
        pidfd = os.pidfd_open(shim.pid)
        shim.client = await Client.connect(f"unix://{path}/s/sock", patient(10))
        try:
            yield shim
        finally:
            with contextlib.suppress(OrlopError):
                await shim.finish()
            with contextlib.suppress(OrlopError):
                await shim.call("Shutdown")
            await shim.client.close()
            gone = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().add_reader(pidfd, lambda: gone.done() or gone.set_result(None))
            try:
                await asyncio.wait_for(gone, patient(15))
            finally:
                asyncio.get_running_loop().remove_reader(pidfd)
                os.close(pidfd)
