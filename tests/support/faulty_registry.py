"""A registry of our own that misbehaves on order, in the event loop of the test.

    async with FaultyRegistry() as registry:
        registry.add_blob(data)                                # kept and given like any registry does
        registry.add_manifest("repo", "tag", data, media_type)
        registry.on("GET", "/blobs/", reset_after(1000))       # the first such request breaks, later ones are fine
        registry.on("GET", "/blobs/", status(503), times=3)    # the next three
        registry.on("HEAD", "", status(404), times=FOREVER)
        ...
        registry.seen                                          # every request, in order

A fault is a coroutine function of the registry and the request that gives the answer; write more of them in place.
Faults are used in the order in which they were given, each for the requests whose path contains its text.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web

FOREVER = 1 << 30
Fault = Callable[["FaultyRegistry", web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


@dataclass
class _Order:
    method: str
    path: str
    fault: Fault
    times: int


@dataclass
class FaultyRegistry:
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    """By `repository/tag` and `repository/digest`."""
    uploads: dict[str, bytearray] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    address: str = ""
    _orders: list[_Order] = field(default_factory=list)
    _runner: web.AppRunner | None = None
    _closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port: int = self._runner.addresses[0][1]
        self.address = f"127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed.set()
        assert self._runner is not None
        await self._runner.cleanup()

    def add_blob(self, data: bytes) -> str:
        digest = digest_of(data)
        self.blobs[digest] = data
        return digest

    def add_manifest(self, repository: str, tag: str, data: bytes, media_type: str) -> str:
        digest = digest_of(data)
        for name in (tag, digest):
            self.manifests[f"{repository}/{name}"] = (data, media_type)
        return digest

    def on(self, method: str, path: str, fault: Fault, times: int = 1) -> None:
        """The next `times` requests of `method` (empty: any) whose path contains `path` get `fault`."""
        self._orders.append(_Order(method, path, fault, times))

    def count(self, method: str, path: str = "") -> int:
        return sum(seen.method == method and path in seen.path for seen in self.seen)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(Seen(request.method, request.path, dict(request.query), dict(request.headers)))
        for order in self._orders:
            if order.times and order.method in ("", request.method) and order.path in request.path:
                order.times -= 1
                return await order.fault(self, request)
        return await self.proper(request)

    async def proper(self, request: web.Request) -> web.StreamResponse:
        """What a registry that has no faults answers."""
        parts = request.path.removeprefix("/v2/").split("/")
        if len(parts) < 3:
            return web.json_response({})
        if "uploads" in parts:
            return await self._upload(request, parts)
        repository, kind, name = "/".join(parts[:-2]), parts[-2], parts[-1]
        if kind == "manifests":
            return await self._manifest(request, repository, name)
        if kind != "blobs" or name not in self.blobs:
            return error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        return ranged(request, self.blobs[name], {"Docker-Content-Digest": name})

    async def _manifest(self, request: web.Request, repository: str, name: str) -> web.StreamResponse:
        if request.method == "PUT":
            digest = self.add_manifest(repository, name, await request.read(), request.headers.get("Content-Type", ""))
            return web.Response(status=201, headers={"Docker-Content-Digest": digest})
        if f"{repository}/{name}" not in self.manifests:
            return error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        data, media_type = self.manifests[f"{repository}/{name}"]
        headers = {"Docker-Content-Digest": digest_of(data), "Content-Type": media_type}
        return web.Response(body=data, headers=headers)

    async def _upload(self, request: web.Request, parts: list[str]) -> web.StreamResponse:
        if request.method == "POST":
            name = f"u{len(self.uploads)}"
            self.uploads[name] = bytearray()
            return web.Response(status=202, headers={"Location": f"{request.path}{name}", "Range": "0-0"})
        if parts[-1] not in self.uploads:
            return error(404, "BLOB_UPLOAD_UNKNOWN", "upload unknown")
        upload = self.uploads[parts[-1]]
        start = request.headers.get("Content-Range", "").partition("-")[0]
        if start and int(start) != len(upload):
            return web.Response(status=416, headers={"Range": f"0-{len(upload) - 1}"})
        if request.method in ("PATCH", "PUT"):
            upload += await request.read()
        headers = {"Location": request.path, "Range": f"0-{max(len(upload) - 1, 0)}"}
        if request.method != "PUT":
            return web.Response(status=202 if request.method == "PATCH" else 204, headers=headers)
        if digest_of(bytes(upload)) != request.query["digest"]:
            return error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        return web.Response(status=201, headers={"Docker-Content-Digest": self.add_blob(bytes(upload))})


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def error(code: int, word: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """An error as the distribution-spec writes it."""
    return web.json_response({"errors": [{"code": word, "message": message}]}, status=code, headers=headers)


def ranged(request: web.Request, data: bytes, headers: Mapping[str, str]) -> web.Response:
    """`data`, or the range of it that the request asks for."""
    asked = request.headers.get("Range", "").removeprefix("bytes=")
    if not asked:
        return web.Response(body=data, headers=headers)
    first, _, last = asked.partition("-")
    start, end = int(first), min(int(last or len(data)) + 1, len(data))
    if start >= len(data):
        return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
    content_range = f"bytes {start}-{end - 1}/{len(data)}"
    return web.Response(status=206, body=data[start:end], headers={**headers, "Content-Range": content_range})


def status(code: int, headers: Mapping[str, str] | None = None, message: str = "so ordered") -> Fault:
    async def fault(_: FaultyRegistry, request: web.Request) -> web.StreamResponse:
        await request.read()
        return error(code, "FAULT", message, headers)

    return fault


def redirect(url: str, code: int = 307) -> Fault:
    """`{path}` in `url` is the path that was asked for."""

    async def fault(_: FaultyRegistry, request: web.Request) -> web.StreamResponse:
        return web.Response(status=code, headers={"Location": url.replace("{path}", request.path)})

    return fault


def changed(headers: Mapping[str, str] | None = None, body: Callable[[bytes], bytes] = bytes, code: int = 0) -> Fault:
    """The proper answer with other headers, another body, another status."""

    async def fault(registry: FaultyRegistry, request: web.Request) -> web.StreamResponse:
        answer = await registry.proper(request)
        assert isinstance(answer, web.Response)
        given = {name: value for name, value in answer.headers.items() if name not in ("Content-Length",)}
        given |= headers or {}
        data = answer.body if isinstance(answer.body, bytes) else b""
        return web.Response(status=code or answer.status, body=body(data), headers=given)

    return fault


def ignoring_range() -> Fault:
    """The whole body whatever range is asked for."""

    async def fault(registry: FaultyRegistry, request: web.Request) -> web.StreamResponse:
        return web.Response(body=registry.blobs[request.path.rpartition("/")[2]])

    return fault


def reset_after(size: int) -> Fault:
    """So many bytes of the body, then a reset."""

    async def fault(registry: FaultyRegistry, request: web.Request) -> web.StreamResponse:
        response = await _begun(registry, request, size)
        if request.transport is not None:
            await asyncio.sleep(0.05)  # so that what was sent arrives before the reset
            request.transport.abort()
        return response

    return fault


def stall_after(size: int) -> Fault:
    """So many bytes of the body, then nothing for as long as the test runs."""

    async def fault(registry: FaultyRegistry, request: web.Request) -> web.StreamResponse:
        response = await _begun(registry, request, size)
        await registry._closed.wait()
        return response

    return fault


def endless(piece: bytes = b"x" * 65536) -> Fault:
    """A body without a length that does not end."""

    async def fault(registry: FaultyRegistry, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not registry._closed.is_set():
            await response.write(piece)
        return response

    return fault


async def _begun(registry: FaultyRegistry, request: web.Request, size: int) -> web.StreamResponse:
    answer = await registry.proper(request)
    assert isinstance(answer, web.Response)
    assert isinstance(answer.body, bytes)
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = len(answer.body)
    await response.prepare(request)
    await response.write(answer.body[:size])
    return response
