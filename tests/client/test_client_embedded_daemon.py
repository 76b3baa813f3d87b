"""The library with a whole daemon in this process: no gRPC socket, real containers."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import busybox_image
import pytest

from orlop.client import embedded, run
from orlop.client.streams import Streams
from orlop.core.task import NewTask
from orlop.daemon.config import Config
from orlop.daemon.server import Daemon
from orlop.oci.spec import SpecOptions

pytestmark = [pytest.mark.root, pytest.mark.runtime]


async def test_a_program_runs_a_container_without_a_daemon_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    with tempfile.TemporaryDirectory(prefix="orlop-", dir="/tmp") as folder:
        work = Path(folder)
        config = Config(
            root=str(work / "root"),
            state=str(work / "state"),
            plugins={"io.containerd.server.v1.grpc": {"address": str(work / "o.sock")}},
        )
        async with Daemon(config, serve=False) as daemon, embedded(daemon.services) as client:
            [image] = await client.import_archive(io.BytesIO(busybox_image.oci_layout()))
            assert image.name == busybox_image.NAME
            id = f"embedded-{os.getpid()}"
            options = run.Options(spec=SpecOptions(args=["sh", "-c", "echo from within; exit 3"]))
            container = await run.create(client, await client.image("busybox"), id, options)
            outlet, inlet = os.pipe()
            async with Streams(id, stdin=None, stdout=inlet, stderr=None) as streams:
                await client.tasks.create(client.scope, NewTask(id, await run.rootfs(client, container), streams.io))
                await client.tasks.start(client.scope, id)
                assert (await client.tasks.wait(client.scope, id)).status == 3
                await streams.finish()
            os.close(inlet)
            assert os.read(outlet, 100) == b"from within\n"
            os.close(outlet)
            await run.remove(client, id)
            assert not await client.containers.list(client.scope)
            assert not await client.tasks.list(client.scope)
            await client.images.delete(client.scope, image.name, sync=True)
            assert not await client.content.list(client.scope)
            assert not await client.snapshots.list(client.scope, "overlayfs")
        assert not (work / "o.sock").exists()


async def test_an_image_that_another_namespace_has_is_imported_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    with tempfile.TemporaryDirectory(prefix="orlop-", dir="/tmp") as folder:
        config = Config(
            root=f"{folder}/root",
            state=f"{folder}/state",
            plugins={"io.containerd.server.v1.grpc": {"address": f"{folder}/o.sock"}},
        )
        async with Daemon(config, serve=False) as daemon:
            for namespace in ("one", "two"):
                async with embedded(daemon.services, namespace) as client:
                    await client.import_archive(io.BytesIO(busybox_image.oci_layout()))
                    assert len(await client.content.list(client.scope)) == 3
                    assert await client.snapshots.list(client.scope, "overlayfs")
