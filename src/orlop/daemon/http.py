"""What the daemon serves over HTTP when told to: metrics on TCP, and a look inside on a unix socket."""

from __future__ import annotations

import asyncio
import os
import resource
from pathlib import Path

from aiohttp import web

from orlop.core import clock
from orlop.core.plugin import DaemonInfo
from orlop.daemon import stacks
from orlop.errors import InvalidArgument

_STARTED = clock.now()


def render(daemon: DaemonInfo) -> str:
    """The metrics as Prometheus' text format, under the names that dashboards for containerd know."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    labels = f'{{version="{daemon.version}",revision="{daemon.revision}"}}'
    families = (
        ("containerd_build_info_total", "counter", "The build.", labels, 1.0),
        ("process_cpu_seconds_total", "counter", "User and system time.", "", usage.ru_utime + usage.ru_stime),
        ("process_resident_memory_bytes", "gauge", "Resident memory.", "", pages * os.sysconf("SC_PAGE_SIZE")),
        ("process_open_fds", "gauge", "Open descriptors.", "", len(os.listdir("/proc/self/fd"))),
        ("process_start_time_seconds", "gauge", "Start, since 1970.", "", _STARTED / 1e9),
        ("orlop_tasks", "gauge", "Tasks of the event loop.", "", len(asyncio.all_tasks())),
    )
    return "".join(
        f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name}{label} {value:g}\n"
        for name, kind, text, label, value in families
    )


class MetricsListener:
    def __init__(self, address: str, daemon: DaemonInfo) -> None:
        self.address = address
        self._host, self._port = _host_and_port(address)
        application = web.Application()
        application.router.add_get("/v1/metrics", self._answer)
        self._daemon = daemon
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        self.address = ":".join(str(part) for part in self._runner.addresses[0][:2])

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, _request: web.Request) -> web.Response:
        return web.Response(text=render(self._daemon), content_type="text/plain", charset="utf-8")


class DebugListener:
    """Stacks under the name that the field's tools know, and the command line."""

    def __init__(self, address: str, uid: int, gid: int) -> None:
        self.address = address
        self._owner = (uid, gid)
        application = web.Application()
        application.router.add_get("/debug/pprof/goroutine", self._stacks)
        application.router.add_get("/debug/pprof/cmdline", self._command_line)
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self) -> None:
        from orlop.daemon.sockets import bind

        await self._runner.setup()
        await web.SockSite(self._runner, bind(self.address, *self._owner)).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _stacks(self, _request: web.Request) -> web.Response:
        return web.Response(text=stacks.render())

    async def _command_line(self, _request: web.Request) -> web.Response:
        return web.Response(body=Path("/proc/self/cmdline").read_bytes().rstrip(b"\0"))


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise InvalidArgument(f'metrics address "{address}" (expected host:port)')
    return host.strip("[]"), int(port)
