from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from orlop.api.services.events.v1 import events_pb2
from orlop.api.services.introspection.v1 import introspection_pb2
from orlop.api.services.ttrpc.events.v1 import events_pb2 as ttrpc_events_pb2
from orlop.api.types import introspection_pb2 as types
from orlop.api.types.event_pb2 import Envelope
from orlop.core.plugin import InitContext, PluginType, Registration
from orlop.core.wire.common import any_of, pack
from orlop.daemon import server
from orlop.daemon.config import Config, ProxyPlugin
from orlop.daemon.server import Daemon
from orlop.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable, Unimplemented
from orlop.rpc.channel import InProcessChannel, Stub
from orlop.rpc.ttrpc import Client

INTROSPECTION = introspection_pb2.DESCRIPTOR.services_by_name["Introspection"]
EVENTS = events_pb2.DESCRIPTOR.services_by_name["Events"]
OURS = {f"io.containerd.{rest}" for rest in (
    "event.v1.exchange", "warning.v1.deprecations", "service.v1.introspection-service", "grpc.v1.introspection",
    "grpc.v1.events", "grpc.v1.version", "ttrpc.v1.events", "server.v1.ttrpc", "server.v1.grpc",
)}  # fmt: skip


def configuration(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Paths under `directory`, and only the plugins of this room."""
    monkeypatch.setenv("PATH", os.environ["PATH"])
    found = server.registrations
    monkeypatch.setattr(server, "registrations", lambda: [one for one in found() if one.registration.uri in OURS])
    return Config(
        root=str(directory / "root"),
        state=str(directory / "state"),
        plugins={"io.containerd.server.v1.grpc": {"address": str(directory / "o.sock")}},
    )


def stub(daemon: Daemon, service: Any = INTROSPECTION) -> Stub:
    return Stub(InProcessChannel(daemon.services), service, {})


async def test_an_embedded_daemon_serves_calls_in_the_same_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Daemon(configuration(tmp_path, monkeypatch), serve=False) as daemon:
        answer = await stub(daemon).call("Server", Empty())
        assert answer.pid == os.getpid()
        assert answer.pidns == os.stat("/proc/self/ns/pid").st_ino
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", answer.uuid)
        assert (await stub(daemon).call("Server", Empty())).uuid == answer.uuid
        assert not (tmp_path / "o.sock").exists()
    with pytest.raises(Unavailable):
        Daemon(configuration(tmp_path, monkeypatch)).services  # noqa: B018


async def test_shims_reach_an_embedded_daemon_over_ttrpc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Daemon(configuration(tmp_path, monkeypatch), serve=False) as daemon:
        exchange: Any = daemon.instance(PluginType.EVENT, "exchange")
        client = await Client.connect(str(tmp_path / "o.sock.ttrpc"), timeout=10)
        envelope = Envelope(namespace="ns", topic="/tasks/start")
        with exchange.subscribe() as subscription:
            await client.call(
                "containerd.services.events.ttrpc.v1.Events",
                "Forward",
                ttrpc_events_pb2.ForwardRequest(envelope=envelope),
                Empty,
            )
            assert (await anext(subscription)).topic == "/tasks/start"
        await client.close()


async def test_plugins_are_listed_by_filter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Daemon(configuration(tmp_path, monkeypatch), serve=False) as daemon:

        async def listed(*filters: str) -> set[str]:
            answer = await stub(daemon).call("Plugins", introspection_pb2.PluginsRequest(filters=filters))
            return {f"{plugin.type}.{plugin.id}" for plugin in answer.plugins}

        assert await listed() == OURS
        assert await listed("type==io.containerd.event.v1") == {"io.containerd.event.v1.exchange"}
        assert await listed("id==ttrpc", "id==version") == {
            "io.containerd.server.v1.ttrpc",
            "io.containerd.grpc.v1.version",
        }
        assert await listed("platforms==x") == set()
        with pytest.raises(InvalidArgument, match=r"^invalid argument: filters: parse error: "):
            await listed("==")


async def test_plugin_info_asks_the_runtime_and_refuses_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Runtime:
        async def runtime_info(self, request: types.RuntimeRequest) -> types.RuntimeInfo:
            return types.RuntimeInfo(name=request.runtime_path)

    async def init(_context: InitContext) -> Runtime:
        return Runtime()

    extra = [Registration(PluginType.RUNTIME, "task", init)]
    options = any_of(pack(types.RuntimeRequest(runtime_path="io.containerd.runc.v2")))

    def asked(type: str, id: str, options: Any = None) -> introspection_pb2.PluginInfoRequest:
        return introspection_pb2.PluginInfoRequest(type=type, id=id, options=options)

    async with Daemon(configuration(tmp_path, monkeypatch), serve=False, extra=extra) as daemon:
        answer = await stub(daemon).call("PluginInfo", asked(PluginType.RUNTIME, "task", options))
        assert answer.extra.type_url == "containerd.types.RuntimeInfo"
        assert types.RuntimeInfo.FromString(answer.extra.value).name == "io.containerd.runc.v2"
        plain = await stub(daemon).call("PluginInfo", asked(PluginType.EVENT, "exchange"))
        assert (plain.plugin.id, plain.HasField("extra")) == ("exchange", False)
        with pytest.raises(Unimplemented) as unimplemented:
            await stub(daemon).call("PluginInfo", asked(PluginType.EVENT, "exchange", options))
        assert str(unimplemented.value) == "plugin does not provided extra information: not implemented"
        with pytest.raises(NotFound) as missing:
            await stub(daemon).call("PluginInfo", asked("a", "b"))
        assert str(missing.value) == "plugin a.b not found: not found"


async def test_a_proxy_plugin_is_shown_as_one_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(tmp_path, monkeypatch)
    config.proxy_plugins = {"stargz": ProxyPlugin("snapshot", "/run/x.sock"), "odd": ProxyPlugin("teapot")}
    async with Daemon(config, serve=False) as daemon:
        errors = {status.registration.uri: status.error for status in daemon.plugins}
        assert isinstance(errors["io.containerd.snapshotter.v1.stargz"], Unimplemented)
        assert not any(uri.endswith(".odd") for uri in errors)


async def test_a_daemon_whose_socket_is_removed_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_WATCH_SECONDS", 0.01)
    async with Daemon(configuration(tmp_path, monkeypatch)) as daemon:
        (tmp_path / "o.sock").unlink()
        with pytest.raises(Unavailable, match=r"socket .*o\.sock was removed"):
            await daemon.wait()


async def test_ten_daemons_one_after_another_leave_no_task_thread_or_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(tmp_path, monkeypatch)

    async def counts() -> tuple[int, int]:
        return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))

    async with Daemon(config):
        pass
    before = await counts()
    for _ in range(10):
        async with Daemon(config):
            pass
    for _ in range(100):  # what a thread of the last one still holds goes with what it does
        if await counts() == before:
            break
        await asyncio.sleep(0.05)
    assert await counts() == before


async def test_a_start_that_fails_gives_the_directories_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(tmp_path, monkeypatch)
    config.required_plugins = ["a.b"]
    with pytest.raises(FailedPrecondition):
        async with Daemon(config):
            pass
    config.required_plugins = []
    async with Daemon(config, serve=False):
        pass


async def test_a_second_daemon_in_the_same_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(tmp_path, monkeypatch)
    async with Daemon(config, serve=False):
        with pytest.raises(FailedPrecondition, match=rf"in use by another daemon, pid {os.getpid()}$"):
            async with Daemon(config, serve=False):
                pass
