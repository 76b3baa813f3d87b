"""What `hosts.toml` and the environment say of how a registry is reached, as the registry sees it."""

from __future__ import annotations

import asyncio
import base64
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from faulty_registry import FaultyRegistry
from real_registry import Certificate, serve
from registry_world import Document, fetched, image_of, push_image, reader_of, repository

from orlop.core import media
from orlop.core.registry import RegistryOptions
from orlop.errors import FailedPrecondition, NotFound, OrlopError, Unavailable

SMALL = Document.of(b"small")
MANIFEST = image_of(SMALL)[1]
NAME = "registry.example/team/app:1"

needs_registry = pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry")


def said(directory: Path, text: str) -> RegistryOptions:
    """Options by which `hosts.toml` of registry.example is `text`."""
    (directory / "registry.example").mkdir(exist_ok=True)
    (directory / "registry.example" / "hosts.toml").write_text(text)
    return RegistryOptions(str(directory))


async def test_headers_and_an_own_path_are_what_the_registry_sees(tmp_path: Path) -> None:
    async with FaultyRegistry() as registry:
        options = said(
            tmp_path,
            f'[host."http://{registry.address}/other/api"]\noverride_path = true\n'
            f'[host."http://{registry.address}/other/api".header]\nX-Key = ["a", "b"]\n',
        )
        async with repository(NAME, options) as target:
            with pytest.raises(OrlopError):
                await target.resolve()
        [seen, *_] = registry.seen
        assert seen.path == "/other/api/team/app/manifests/1"
        assert (seen.headers["X-Key"], seen.query["ns"]) == ("a, b", "registry.example")


async def test_a_host_is_asked_only_for_what_it_can(tmp_path: Path) -> None:
    async with FaultyRegistry() as first, FaultyRegistry() as second:
        second.add_manifest("team/app", "1", MANIFEST.data, media.OCI_MANIFEST)
        second.add_blob(SMALL.data)
        options = said(
            tmp_path,
            f'server = "http://{second.address}"\ncapabilities = ["pull", "resolve"]\n'
            f'[host."http://{first.address}"]\ncapabilities = ["push"]\n',
        )
        async with repository(NAME, options) as target:
            assert await target.resolve() == MANIFEST.descriptor
            assert await fetched(target, SMALL.descriptor) == SMALL.data
            assert first.seen == []
            await target.push(SMALL.descriptor, reader_of(SMALL.data))
            assert SMALL.descriptor.digest in first.blobs
            assert {seen.method for seen in second.seen} == {"HEAD", "GET"}


@pytest.mark.parametrize(
    ("capability", "refused"), [("push", "no resolve hosts"), ("pull", "no resolve hosts"), ("referrers", "no pull")]
)
async def test_where_no_host_can_do_a_thing_that_is_told(tmp_path: Path, capability: str, refused: str) -> None:
    options = said(tmp_path, f'server = "http://127.0.0.1:1"\ncapabilities = ["{capability}"]\n')
    async with repository(NAME, options) as target:
        with pytest.raises(NotFound, match=f"{NAME}: {refused}"):
            await (fetched(target, SMALL.descriptor) if "pull" in refused else target.resolve())
        if capability != "push":
            with pytest.raises(NotFound, match="no push hosts"):
                await target.push(SMALL.descriptor, reader_of(SMALL.data))


async def test_a_host_that_does_not_answer_is_left_after_its_dial_timeout(tmp_path: Path) -> None:
    with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        # Its queue is full, so that nobody else gets through.
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        async with FaultyRegistry() as registry:
            registry.add_manifest("team/app", "1", MANIFEST.data, media.OCI_MANIFEST)
            options = said(
                tmp_path, f'server = "http://{registry.address}"\n[host."http://{address}"]\ndial_timeout = "300ms"\n'
            )
            async with asyncio.timeout(20), repository(NAME, options) as target:  # 30 s are the default
                assert await target.resolve() == MANIFEST.descriptor


@needs_registry
async def test_a_certificate_for_another_name_is_taken_where_that_is_said(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path, "DNS:elsewhere.example")
    with serve(tmp_path / "tls", tls=certificate) as registry:
        server = f'server = "https://{registry.address}"\n'
        async with repository(NAME, said(tmp_path, f"{server}skip_verify = true\n")) as target:
            manifest = await push_image(target, SMALL)
            assert await target.resolve() == manifest.descriptor
        async with repository(NAME, said(tmp_path, server)) as target:
            with pytest.raises(FailedPrecondition, match=f"{NAME}: .*{registry.address}"):
                await target.resolve()


@needs_registry
async def test_a_registry_that_wants_to_see_a_certificate_is_shown_it(tmp_path: Path) -> None:
    certificate, ours = Certificate.make(tmp_path), Certificate.make(tmp_path, "DNS:client.example")
    with serve(tmp_path / "tls", tls=certificate, shown_to=ours) as registry:
        server = f'server = "https://{registry.address}"\nca = "{certificate.certificate}"\n'
        pair = f'client = [["{ours.certificate}", "{ours.key}"]]\n'
        async with repository(NAME, said(tmp_path, server + pair)) as target:
            manifest = await push_image(target, SMALL)
            assert await target.resolve() == manifest.descriptor
        other = f'client = [["{certificate.certificate}", "{certificate.key}"]]\n'
        for more, reason in (("", "wants to be shown a certificate"), (other, "does not take the certificate")):
            async with repository(NAME, said(tmp_path, server + more)) as target:
                with pytest.raises(FailedPrecondition, match=f"{NAME}: HEAD https://{registry.address}/.*{reason}"):
                    await target.resolve()


class Tunnels:
    """A proxy that knows CONNECT, and brings everybody to one address."""

    def __init__(self, address: str) -> None:
        self._to = address.rpartition(":")
        self.asked: list[bytes] = []
        self.address = ""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Tunnels]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(await reader.readuntil(b"\r\n\r\n"))
        there, to = await asyncio.open_connection(self._to[0], int(self._to[2]))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(self._copy(reader, to), self._copy(there, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()


@needs_registry
async def test_https_goes_through_a_proxy_that_sees_only_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = Certificate.make(tmp_path, "DNS:registry.example")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serve(tmp_path / "tls", tls=certificate) as registry:
        async with Tunnels(registry.address).listening() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://u:very-secret@{proxy.address}")
            options = said(tmp_path, f'ca = "{certificate.certificate}"\n')
            async with repository(NAME, options) as target:
                manifest = await push_image(target, SMALL)
                assert await target.resolve() == manifest.descriptor
            assert {asked.split(b"\r\n")[0] for asked in proxy.asked} == {b"CONNECT registry.example:443 HTTP/1.1"}
            user = base64.b64encode(b"u:very-secret")
            assert all(b"Proxy-Authorization: Basic " + user in asked for asked in proxy.asked)
            monkeypatch.setenv("HTTPS_PROXY", "http://u:very-secret@127.0.0.1:1")
            async with repository(NAME, options) as target:
                with pytest.raises(Unavailable, match=f"{NAME}: .*127.0.0.1:1.*refused") as caught:
                    await target.resolve()
            assert "very-secret" not in str(caught.value)


async def test_a_proxy_of_another_kind_is_refused_by_the_name_of_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://u:very-secret@p.example:1080")
    async with repository(NAME) as target:
        with pytest.raises(FailedPrecondition, match=f"{NAME}: .*HTTPS_PROXY is socks5://p.example:1080") as caught:
            await target.resolve()
        assert "very-secret" not in str(caught.value)
