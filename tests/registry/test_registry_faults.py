"""Registries that misbehave: what is refused, what is tried again, and what the message says."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_registry import (
    FOREVER,
    Fault,
    FaultyRegistry,
    changed,
    endless,
    ignoring_range,
    redirect,
    reset_after,
    stall_after,
    status,
)
from registry_world import QUICK, Document, FixedCredentials, fetched, image_of, reader_of, repository

from orlop.core import media
from orlop.core.descriptor import Descriptor
from orlop.core.registry import RegistryOptions
from orlop.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OrlopError,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from orlop.registry.repository import HostedRepository
from orlop.registry.settings import Settings

HTTP = RegistryOptions(default_scheme="http")
BLOB = Document.of(os.urandom((4 << 20) + 33))
CONFIG, MANIFEST = image_of(BLOB)


@asynccontextmanager
async def world(
    options: RegistryOptions = HTTP, settings: Settings = QUICK
) -> AsyncIterator[tuple[FaultyRegistry, HostedRepository]]:
    async with FaultyRegistry() as registry:
        registry.add_blob(BLOB.data)
        registry.add_manifest("r", "1", MANIFEST.data, media.OCI_MANIFEST)
        async with repository(f"{registry.address}/r:1", options, settings) as target:
            yield registry, target


WHOLE = replace(QUICK, ranges=1)


@pytest.mark.parametrize("settings", [QUICK, WHOLE], ids=["ranges", "whole"])
@pytest.mark.parametrize("size", [0, 1, 500_000])
async def test_a_reset_in_mid_blob_goes_on_where_it_broke_off(settings: Settings, size: int) -> None:
    async with world(settings=settings) as (registry, target):
        registry.on("GET", "/blobs/", reset_after(size), times=3)
        assert await fetched(target, BLOB.descriptor) == BLOB.data
        if settings is WHOLE and size > 1:
            assert registry.seen[1].headers["Range"].startswith("bytes=")
            assert registry.seen[1].headers["Range"] != "bytes=0-"


@pytest.mark.parametrize("settings", [QUICK, WHOLE], ids=["ranges", "whole"])
async def test_a_stall_in_mid_blob_is_given_up_and_goes_on(settings: Settings) -> None:
    async with world(settings=replace(settings, stall_timeout=0.3)) as (registry, target):
        registry.on("GET", "/blobs/", stall_after(300_000), times=2)
        assert await fetched(target, BLOB.descriptor) == BLOB.data


async def test_a_blob_that_always_breaks_off_ends_with_its_cause() -> None:
    async with world(settings=WHOLE) as (registry, target):
        registry.on("GET", "/blobs/", reset_after(1000), times=FOREVER)
        with pytest.raises(Unavailable, match=f"{registry.address}/r:1: {BLOB.descriptor.digest}: GET"):
            await fetched(target, BLOB.descriptor)
        assert registry.count("GET", "/blobs/") == QUICK.attempts


async def test_a_blob_that_stops_being_there_in_its_middle_is_an_error() -> None:
    async with world() as (registry, target):
        chunks = []

        async def read() -> None:
            async with target.fetch(BLOB.descriptor) as stream:
                async for chunk in stream:
                    chunks.append(chunk)
                    registry.on("GET", "/blobs/", status(404), times=FOREVER)

        with pytest.raises(NotFound):
            await read()
        assert BLOB.data.startswith(b"".join(chunks))


@pytest.mark.parametrize("settings", [QUICK, WHOLE], ids=["ranges", "whole"])
@pytest.mark.parametrize(
    "fault",
    [
        changed(body=lambda data: data + b"x"),
        changed(body=lambda data: data[:-1]),
        endless(),
    ],
    ids=["longer", "shorter", "endless"],
)
async def test_a_body_of_another_length_is_refused(settings: Settings, fault: Fault) -> None:
    small = Document.of(b"small" * 100)
    async with world(settings=settings) as (registry, target):
        registry.add_blob(small.data)
        registry.on("GET", "/blobs/", fault, times=FOREVER)
        with pytest.raises(DataLoss, match=small.descriptor.digest):
            await fetched(target, small.descriptor)


@pytest.mark.parametrize(
    "text",
    ["bytes 0-9/100", "bytes 5-1/9", "bytes */100", "items 0-1/2", "bytes -1-5/9", "", "bytes 1048576-٣/4194337"],
)
@pytest.mark.parametrize("offset", [0, 1 << 20])
async def test_a_wrong_content_range_is_never_taken(text: str, offset: int) -> None:
    async with world() as (registry, target):
        # Latin-1 is what headers can carry.
        sent = text.encode().decode("latin-1")
        registry.on("GET", "/blobs/", changed({"Content-Range": sent}, code=206))
        assert await fetched(target, BLOB.descriptor, offset) == BLOB.data[offset:]
        registry.on("GET", "/blobs/", changed({"Content-Range": sent}, code=206), times=FOREVER)
        with pytest.raises(DataLoss, match="Content-Range"):
            await fetched(target, BLOB.descriptor, offset)


@pytest.mark.parametrize("settings", [QUICK, WHOLE], ids=["ranges", "whole"])
async def test_a_registry_without_ranges_gives_the_blob_all_the_same(settings: Settings) -> None:
    async with world(settings=settings) as (registry, target):
        registry.on("GET", "/blobs/", ignoring_range(), times=FOREVER)
        assert await fetched(target, BLOB.descriptor, 1 << 20) == BLOB.data[1 << 20 :]
        assert await fetched(target, BLOB.descriptor) == BLOB.data


async def test_ranges_that_end_after_the_first_are_done_without() -> None:
    async with world() as (registry, target):
        registry.on("GET", "/blobs/", changed())
        registry.on("GET", "/blobs/", ignoring_range(), times=FOREVER)
        assert await fetched(target, BLOB.descriptor) == BLOB.data


async def test_416_begins_anew_without_a_range() -> None:
    async with world() as (registry, target):
        registry.on("GET", "/blobs/", status(416))
        assert await fetched(target, BLOB.descriptor, 5) == BLOB.data[5:]
        assert "Range" not in registry.seen[1].headers


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
async def test_a_busy_or_broken_registry_is_asked_again(code: int) -> None:
    async with world() as (registry, target):
        registry.on("HEAD", "", status(code), times=2)
        assert await target.resolve() == MANIFEST.descriptor
        registry.on("GET", "/blobs/", status(code), times=2)
        assert await fetched(target, BLOB.descriptor) == BLOB.data


async def test_retry_after_is_honoured_within_its_limit() -> None:
    async with world(settings=replace(QUICK, retry_after_limit=0.4)) as (registry, target):
        registry.on("HEAD", "", status(429, {"Retry-After": "3600"}))
        began = time.monotonic()
        assert await target.resolve() == MANIFEST.descriptor
        assert time.monotonic() - began >= 0.4


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (401, Unauthenticated),
        (403, PermissionDenied),
        (404, NotFound),
        (429, ResourceExhausted),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
async def test_a_refusal_names_reference_host_and_what_the_registry_says(code: int, kind: type[OrlopError]) -> None:
    async with world() as (registry, target):
        headers = {"X-Request-Id": "abc-1", "WWW-Authenticate": "Basic"}
        registry.on("", "", status(code, headers, "no\x1b[31m entry"), times=FOREVER)
        with pytest.raises(kind, match=f"{registry.address}/r:1") as caught:
            await target.resolve()
        if code != 404:
            assert f"{code} " in str(caught.value)
            assert "abc-1" in str(caught.value)
        with pytest.raises(kind, match=BLOB.descriptor.digest) as caught:
            await fetched(target, BLOB.descriptor)
        if code != 404:
            # One line, without what a terminal would obey.
            assert "FAULT: no [31m entry" in str(caught.value)
        assert len(registry.seen) <= 4 * QUICK.attempts
        with pytest.raises(OrlopError, match=BLOB.descriptor.digest):
            await target.push(BLOB.descriptor, reader_of(BLOB.data))


async def test_blobs_are_looked_at_only_where_the_manifest_is_not_found() -> None:
    async with FaultyRegistry() as registry:
        digest = registry.add_blob(b"{}")
        async with repository(f"{registry.address}/r@{digest}", HTTP) as target:
            registry.on("", "/manifests/", status(503), times=FOREVER)
            with pytest.raises(Unavailable):
                await target.resolve()
            assert registry.count("HEAD", "/blobs/") == 0
        async with repository(f"{registry.address}/q@{digest}", HTTP) as target:
            registry._orders.clear()
            assert (await target.resolve()).media_type == "application/octet-stream"


@pytest.mark.parametrize("scheme", ["Basic realm=x", 'Bearer realm="{url}/token",service=s,scope="repository:r:pull"'])
async def test_401_for_ever_ends(scheme: str) -> None:
    async with FaultyRegistry() as registry:

        async def token(_: FaultyRegistry, request: object) -> object:
            from aiohttp import web

            return web.json_response({"token": f"t{len(registry.seen)}"})

        registry.on("", "/token", token, times=FOREVER)  # type: ignore[arg-type]
        challenge = scheme.replace("{url}", f"http://{registry.address}")
        registry.on("", "/v2/", status(401, {"WWW-Authenticate": challenge}), times=FOREVER)
        options = replace(HTTP, credentials=FixedCredentials("u", "very-secret"))
        async with repository(f"{registry.address}/r:1", options) as target:
            with pytest.raises(Unauthenticated, match="authorization failed") as caught:
                await target.resolve()
        assert "very-secret" not in str(caught.value)
        assert len(registry.seen) < 10


async def test_a_redirect_to_another_host_takes_no_secret_along() -> None:
    log: list[str] = []
    async with FaultyRegistry() as elsewhere:
        elsewhere.add_blob(BLOB.data)
        options = replace(
            HTTP, headers={"X-Mine": "private"}, credentials=FixedCredentials("u", "very-secret"), log=log.append
        )
        async with world(options) as (registry, target):
            registry.on("HEAD", "", status(401, {"WWW-Authenticate": "Basic realm=x"}))
            await target.resolve()
            there = f"http://{elsewhere.address}{{path}}?X-Signature=signed"
            registry.on("GET", "/blobs/", redirect(there), times=FOREVER)
            assert await fetched(target, BLOB.descriptor) == BLOB.data
            assert registry.seen[-1].headers["Authorization"].startswith("Basic ")
            assert registry.seen[-1].headers["X-Mine"] == "private"
            # The other ranges go straight to where the first was sent.
            assert registry.count("GET", "/blobs/") == 1
        assert len(elsewhere.seen) == 5
        for seen in elsewhere.seen:
            assert not {"authorization", "x-mine", "cookie"} & {name.lower() for name in seen.headers}
        assert not [line for line in log if "signed" in line or "very-secret" in line or "dTp" in line]


async def test_where_a_redirect_led_may_end_and_is_asked_for_again() -> None:
    async with FaultyRegistry() as elsewhere:
        elsewhere.add_blob(BLOB.data)
        async with world() as (registry, target):
            registry.on("GET", "/blobs/", redirect(f"http://{elsewhere.address}{{path}}"), times=FOREVER)
            elsewhere.on("GET", "", changed())
            elsewhere.on("GET", "", status(403))
            assert await fetched(target, BLOB.descriptor) == BLOB.data
            assert registry.count("GET", "/blobs/") >= 2


async def test_a_401_of_where_a_redirect_leads_is_not_answered() -> None:
    async with FaultyRegistry() as elsewhere:
        elsewhere.on("", "", status(401, {"WWW-Authenticate": "Basic realm=x"}), times=FOREVER)
        credentials = FixedCredentials("u", "very-secret")
        async with world(replace(HTTP, credentials=credentials)) as (registry, target):
            registry.on("GET", "/blobs/", redirect(f"http://{elsewhere.address}{{path}}"), times=FOREVER)
            with pytest.raises(Unauthenticated):
                await fetched(target, BLOB.descriptor)
        assert not credentials.asked
        assert not any("Authorization" in seen.headers for seen in elsewhere.seen)


async def test_a_loop_of_redirects_ends() -> None:
    async with world() as (registry, target):
        registry.on("", "", redirect("{path}"), times=FOREVER)
        with pytest.raises(FailedPrecondition, match="stopped after 10 redirects"):
            await target.resolve()
        assert len(registry.seen) == 11


@pytest.mark.parametrize("url", ["ftp://h/x", "http://[::1", "file:///etc/passwd"])
async def test_a_redirect_to_what_is_no_http_url_is_refused(url: str) -> None:
    async with world() as (registry, target):
        registry.on("", "", redirect(url), times=FOREVER)
        with pytest.raises(FailedPrecondition, match="redirect to"):
            await target.resolve()


async def test_a_foreign_layer_is_fetched_from_its_url_without_any_secret() -> None:
    async with FaultyRegistry() as evil:
        evil.add_blob(BLOB.data)
        credentials = FixedCredentials("u", "very-secret")
        async with world(replace(HTTP, headers={"X-Mine": "1"}, credentials=credentials)) as (registry, target):
            del registry.blobs[BLOB.descriptor.digest]
            foreign = replace(BLOB.descriptor, urls=(f"http://{evil.address}/v2/x/blobs/{BLOB.descriptor.digest}",))
            assert await fetched(target, foreign) == BLOB.data
            for challenge in ("Basic realm=x", f'Bearer realm="http://{evil.address}/token"'):
                evil.on("", "", status(401, {"WWW-Authenticate": challenge}), times=2)
                evil.on("", "/token", status(401), times=2)
                with pytest.raises(Unauthenticated):
                    await fetched(target, foreign)
        assert not credentials.asked
        assert not any({"Authorization", "X-Mine"} & set(seen.headers) for seen in evil.seen)


@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [
        (changed({"Docker-Content-Digest": "sha256:" + "0" * 64}), None, ""),
        (changed({"Docker-Content-Digest": "sha256:../../x"}), DataLoss, "invalid checksum digest"),
        (changed({"Content-Type": "text/plain"}), InvalidArgument, "schema 1 image manifests are no longer supported"),
        (
            changed({"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws"}),
            InvalidArgument,
            "schema 1 image manifests are no longer supported",
        ),
    ],
)
async def test_headers_of_a_manifest_that_lie(fault: Fault, kind: type[OrlopError] | None, text: str) -> None:
    async with world() as (registry, target):
        registry.on("HEAD", "/manifests/1", fault)
        if kind is None:
            # A tag is what the registry says it is; the bytes are checked when they come.
            assert (await target.resolve()).digest == "sha256:" + "0" * 64
        else:
            with pytest.raises(kind, match=text):
                await target.resolve()


async def test_a_digest_is_resolved_to_itself_or_not_at_all() -> None:
    async with FaultyRegistry() as registry:
        digest = registry.add_manifest("r", "1", MANIFEST.data, media.OCI_MANIFEST)
        async with repository(f"{registry.address}/r@{digest}", HTTP) as target:
            registry.on("HEAD", "", changed({"Docker-Content-Digest": "sha256:" + "0" * 64}))
            with pytest.raises(DataLoss, match="Docker-Content-Digest is sha256:0000"):
                await target.resolve()
            registry.on("HEAD", "", status(405))
            registry.on("GET", "", changed(body=lambda data: data + b" "))
            with pytest.raises(DataLoss, match="has digest"):
                await target.resolve()


async def test_a_manifest_of_100_megabytes_is_refused_before_it_is_read() -> None:
    huge = b" " * (100 << 20)
    async with FaultyRegistry() as registry:
        registry.add_manifest("r", "1", huge, media.OCI_MANIFEST)
        async with repository(f"{registry.address}/r:1", HTTP) as target:
            with pytest.raises(OutOfRange, match=f"rejecting {len(huge)} byte manifest"):
                await target.resolve()
            registry.on("HEAD", "", status(405), times=2)
            with pytest.raises(OutOfRange, match="rejecting"):
                await target.resolve()
            registry.on("HEAD", "", status(405))
            registry.on("GET", "", endless())
            with pytest.raises(OutOfRange, match="rejecting"):
                await target.resolve()


async def test_an_upload_that_breaks_off_begins_anew_in_chunks() -> None:
    settings = replace(QUICK, resume_chunk=1 << 20)
    async with world(settings=settings) as (registry, target):
        registry.blobs.clear()
        registry.on("PUT", "/uploads/", status(500))
        assert await target.push(BLOB.descriptor, reader_of(BLOB.data))
        assert registry.blobs[BLOB.descriptor.digest] == BLOB.data
        assert registry.count("PATCH") == 5


async def test_a_chunk_that_breaks_off_goes_on_where_the_registry_stands() -> None:
    async with world(settings=replace(QUICK, upload_chunk=1 << 20)) as (registry, target):
        registry.blobs.clear()

        async def half(faulty: FaultyRegistry, request: object) -> object:
            """Keeps half of the chunk, then the connection goes."""
            data = await request.read()  # type: ignore[attr-defined]
            faulty.uploads["u0"] += data[: len(data) // 2]
            request.transport.abort()  # type: ignore[attr-defined]
            return await faulty.proper(request)  # type: ignore[arg-type]

        registry.on("PATCH", "", half, times=2)  # type: ignore[arg-type]
        assert await target.push(BLOB.descriptor, reader_of(BLOB.data))
        assert registry.blobs[BLOB.descriptor.digest] == BLOB.data
        assert registry.count("POST") == 1


async def test_an_upload_that_nobody_takes_is_given_up() -> None:
    blob = Document.of(os.urandom(16 << 20))

    async def deaf(registry: FaultyRegistry, _: object) -> object:
        return await registry._closed.wait()

    async with world(settings=replace(QUICK, stall_timeout=0.3, attempts=2)) as (registry, target):
        registry.on("PUT", "", deaf, times=FOREVER)  # type: ignore[arg-type]
        registry.on("PATCH", "", deaf, times=FOREVER)  # type: ignore[arg-type]
        with pytest.raises(Unavailable, match="no byte went"):
            await target.push(blob.descriptor, reader_of(blob.data))


async def test_a_chunk_is_as_large_as_the_registry_wants_it() -> None:
    async with world(settings=replace(QUICK, upload_chunk=1 << 20)) as (registry, target):
        registry.blobs.clear()
        registry.on("POST", "", changed({"OCI-Chunk-Min-Length": str(3 << 20)}))
        assert await target.push(BLOB.descriptor, reader_of(BLOB.data))
        assert registry.count("PATCH") == 2


async def test_a_registry_that_keeps_another_digest_is_told_of() -> None:
    async with world() as (registry, target):
        registry.blobs.clear()
        registry.on("PUT", "", changed({"Docker-Content-Digest": "sha256:" + "1" * 64}))
        with pytest.raises(DataLoss, match="got digest sha256:1111"):
            await target.push(BLOB.descriptor, reader_of(BLOB.data))


async def test_a_mirror_that_fails_hands_over_to_the_next_host(tmp_path: Path) -> None:
    async with FaultyRegistry() as mirror, FaultyRegistry() as registry:
        registry.add_blob(BLOB.data)
        mirror.add_blob(BLOB.data)
        registry.add_manifest("r", "1", MANIFEST.data, media.OCI_MANIFEST)
        directory = tmp_path / "registry.example"
        directory.mkdir()
        (directory / "hosts.toml").write_text(
            f'server = "http://{registry.address}"\n'
            f'[host."http://{mirror.address}"]\ncapabilities = ["pull", "resolve"]\n'
            '[host."http://127.0.0.1:1"]\n'
        )
        options = RegistryOptions(str(tmp_path))
        async with repository("registry.example/r:1", options) as target:
            for code in (404, 500, 401, 403):
                mirror.on("HEAD", "/manifests/", status(code))
                assert (await target.resolve()).digest == MANIFEST.descriptor.digest
            assert all(seen.query["ns"] == "registry.example" for seen in (*mirror.seen, *registry.seen))
            # Resumed at the next host where the mirror broke off for good.
            mirror.on("GET", "/blobs/", reset_after(300_000))
            mirror.on("GET", "/blobs/", status(503), times=FOREVER)
            assert await fetched(target, BLOB.descriptor) == BLOB.data
            # What one host does not let us do, the error of another tells with its own.
            mirror.on("", "", status(403), times=FOREVER)
            registry.on("", "", status(404), times=FOREVER)
            with pytest.raises(PermissionDenied, match=f"{mirror.address}.*{registry.address}"):
                await target.resolve()
            await asyncio.sleep(0)


async def test_all_connections_of_a_fetch_end_with_it() -> None:
    async with world() as (registry, target):
        before = len(asyncio.all_tasks())
        async with target.fetch(BLOB.descriptor) as chunks:
            async for _ in chunks:
                break
        assert target._extra._free == QUICK.extra_ranges
        del registry
        assert len([task for task in asyncio.all_tasks() if "_Piece" in repr(task)]) == 0
        assert before


async def test_bandwidth_is_limited() -> None:
    async with world(settings=replace(QUICK, bandwidth=8 << 20)) as (_, target):
        began = time.monotonic()
        assert await fetched(target, BLOB.descriptor) == BLOB.data
        # At least what four megabytes need, less the last chunk, whose time nobody waits for.
        assert time.monotonic() - began >= 0.3


async def test_a_descriptor_with_another_digest_is_never_put_into_a_url() -> None:
    async with world() as (registry, target):
        for digest in ("sha256:../../etc", "", "sha256:" + "A" * 64):
            with pytest.raises(InvalidArgument):
                await fetched(target, Descriptor(media.OCI_LAYER, digest, 1))
        assert not registry.seen


async def test_a_fast_connection_gets_none_beside_it() -> None:
    async with world(settings=replace(QUICK, single_rate=1)) as (registry, target):
        assert await fetched(target, BLOB.descriptor) == BLOB.data
        assert registry.count("GET") == 2
        registry.on("GET", "/blobs/", changed())
        registry.on("GET", "/blobs/", reset_after(500_000))
        assert await fetched(target, BLOB.descriptor) == BLOB.data


async def test_a_proxy_is_used_for_hosts_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultyRegistry() as proxy:
        proxy.add_manifest("r", "1", MANIFEST.data, media.OCI_MANIFEST)
        monkeypatch.setenv("HTTP_PROXY", f"http://u:very-secret@{proxy.address}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        async with repository("registry.example/r:1", HTTP) as target:
            assert await target.resolve() == MANIFEST.descriptor
            assert proxy.seen[0].headers["Host"] == "registry.example"
            assert proxy.seen[0].headers["Proxy-Authorization"].startswith("Basic ")
        monkeypatch.setenv("HTTP_PROXY", "http://u:very-secret@127.0.0.1:1")
        async with repository("registry.example/r:1", HTTP) as target:
            with pytest.raises(Unavailable, match=r"registry\.example/r:1") as caught:
                await target.resolve()
            assert "very-secret" not in str(caught.value)


async def test_an_index_of_100000_entries_is_refused() -> None:
    entry = b'{"mediaType":"%s","digest":"%s","size":1},' % (
        media.OCI_MANIFEST.encode(),
        MANIFEST.descriptor.digest.encode(),
    )
    index = b'{"schemaVersion":2,"manifests":[' + entry * 99_999 + entry[:-1] + b"]}"
    async with FaultyRegistry() as registry:
        registry.add_manifest("r", "1", index, media.OCI_INDEX)
        async with repository(f"{registry.address}/r:1", HTTP) as target:
            with pytest.raises(OutOfRange, match=f"{registry.address}/r:1"):
                await target.resolve()
