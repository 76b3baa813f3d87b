"""Against a real docker-registry: plain, with TLS, with basic and token authentication."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from real_registry import PASSWORD, USER, Certificate, Registry, serve, token_server
from registry_world import (
    QUICK,
    Document,
    FixedCredentials,
    fetched,
    image_of,
    push_image,
    reader_of,
    repository,
)

from orlop.core import media
from orlop.core.registry import RegistryOptions
from orlop.errors import FailedPrecondition, NotFound, Unauthenticated, Unavailable

pytestmark = pytest.mark.skipif(
    not (shutil.which("docker-registry") and shutil.which("openssl")), reason="needs docker-registry and openssl"
)

SMALL = Document.of(b"a layer")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with serve(tmp_path_factory.mktemp("plain")) as registry:
        yield registry


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("certificate"))


async def test_what_is_pushed_is_resolved_and_fetched(plain: Registry) -> None:
    large = Document.of(os.urandom((5 << 20) + 17))
    async with repository(f"{plain.address}/some/image:1") as target:
        manifest = await push_image(target, SMALL, large)
        assert await target.resolve() == manifest.descriptor
        assert await fetched(target, manifest.descriptor) == manifest.data
        assert await fetched(target, large.descriptor) == large.data
        assert await fetched(target, large.descriptor, 3 << 20) == large.data[3 << 20 :]
        assert await fetched(target, large.descriptor, large.descriptor.size) == b""
    async with repository(f"{plain.address}/some/image@{manifest.descriptor.digest}") as by_digest:
        assert await by_digest.resolve() == manifest.descriptor


async def test_what_is_there_is_not_sent_again(plain: Registry) -> None:
    sent: list[int] = []
    async with repository(f"{plain.address}/again:1") as target:
        assert await target.push(SMALL.descriptor, reader_of(SMALL.data), progress=sent.append)
        assert sent[-1] == len(SMALL.data)
        sent.clear()
        assert not await target.push(SMALL.descriptor, reader_of(SMALL.data), progress=sent.append)
        assert not sent


async def test_a_blob_is_mounted_from_another_repository(plain: Registry) -> None:
    blob = Document.of(os.urandom(100))
    async with repository(f"{plain.address}/mount/from:1") as source:
        await source.push(blob.descriptor, reader_of(blob.data))
    async with repository(f"{plain.address}/mount/to:1") as target:
        # With nothing to read, only a mount can succeed.
        assert not await target.push(blob.descriptor, reader_of(b""), mount_from=["mount/from"])
        assert await fetched(target, blob.descriptor) == blob.data
    async with repository(f"{plain.address}/mount/third:1") as target:
        assert await target.push(blob.descriptor, reader_of(blob.data), mount_from=["no/such"])


async def test_a_large_blob_goes_in_chunks(plain: Registry) -> None:
    blob = Document.of(os.urandom((3 << 20) + 5))
    async with repository(f"{plain.address}/chunks:1", settings=replace(QUICK, upload_chunk=1 << 20)) as target:
        assert await target.push(blob.descriptor, reader_of(blob.data))
        assert await fetched(target, blob.descriptor) == blob.data


async def test_an_empty_blob_comes_and_goes(plain: Registry) -> None:
    empty = Document.of(b"")
    async with repository(f"{plain.address}/empty:1") as target:
        assert await target.push(empty.descriptor, reader_of(b""))
        assert await fetched(target, empty.descriptor) == b""


async def test_an_unknown_tag_digest_and_blob_are_not_found(plain: Registry) -> None:
    nothing = Document.of(b"nothing")
    for name in ("some/image:none", f"some/image@{nothing.descriptor.digest}", "none/such:1"):
        async with repository(f"{plain.address}/{name}") as target:
            with pytest.raises(NotFound, match="not found") as caught:
                await target.resolve()
            assert f"{plain.address}/{name}" in str(caught.value)
    async with repository(f"{plain.address}/some/image:1") as target:
        with pytest.raises(NotFound, match=nothing.descriptor.digest):
            await fetched(target, nothing.descriptor)


async def test_referrers_are_kept_by_tag_where_the_registry_has_no_api_for_them(plain: Registry) -> None:
    async with repository(f"{plain.address}/signed:1") as target:
        subject = await push_image(target, SMALL)
        assert await target.referrers(subject.descriptor.digest) == []
        config, signature = image_of(
            SMALL, subject=subject.json, artifactType="application/example.signature", annotations={"by": "me"}
        )
        await target.push(config.descriptor, reader_of(config.data))
        for _ in range(2):
            await target.push(signature.descriptor, reader_of(signature.data))
        (found,) = await target.referrers(subject.descriptor.digest)
        assert (found.digest, found.size) == (signature.descriptor.digest, signature.descriptor.size)
        assert (found.artifact_type, found.annotations) == ("application/example.signature", {"by": "me"})
        assert await target.referrers(subject.descriptor.digest, "other") == []


async def test_an_index_is_pushed_and_resolved(plain: Registry) -> None:
    async with repository(f"{plain.address}/index:1") as target:
        config, manifest = image_of(SMALL)
        for document in (SMALL, config, manifest):
            await target.push(document.descriptor, reader_of(document.data))
        index = Document.of(
            {"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": [manifest.json]}, media.OCI_INDEX
        )
        await target.tag(index.descriptor, reader_of(index.data))
        assert await target.resolve() == index.descriptor


async def test_tls_is_trusted_by_the_administrators_certificate(tmp_path: Path, certificate: Certificate) -> None:
    with serve(tmp_path / "tls", tls=certificate) as registry:
        trusting = registry.host_dir(
            f'server = "https://{registry.address}"\n'
            f'[host."https://{registry.address}"]\nca = "{certificate.certificate}"\n'
        )
        async with repository(f"{registry.address}/x:1", RegistryOptions(str(trusting))) as target:
            manifest = await push_image(target, SMALL)
            assert await target.resolve() == manifest.descriptor
        # Loopback, by itself, is not verified: nobody listens in between.
        async with repository(f"{registry.address}/x:1") as target:
            assert await target.resolve() == manifest.descriptor
        async with repository(f"{registry.address}/x:1", RegistryOptions(default_scheme="https")) as target:
            with pytest.raises(FailedPrecondition, match="authority that is not trusted"):
                await target.resolve()


async def test_a_proxy_behind_tls_is_trusted_as_the_system_says(
    tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    options = RegistryOptions(default_scheme="http")
    with serve(tmp_path / "tls", tls=certificate) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"https://{proxy.address}")
        async with repository("registry.example/x:1", options) as target:
            with pytest.raises((FailedPrecondition, Unavailable)):
                await target.resolve()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certificate))
        async with repository("registry.example/x:1", options) as target:
            with pytest.raises(NotFound, match=r"registry\.example/x:1"):
                await target.resolve()


async def test_the_older_directory_of_certificates_is_read(tmp_path: Path, certificate: Certificate) -> None:
    with serve(tmp_path / "tls", tls=certificate) as registry:
        directory = tmp_path / "certs.d" / f"{registry.address.replace(':', '_')}_"
        directory.mkdir(parents=True)
        shutil.copy(certificate.certificate, directory / "ca.crt")
        options = RegistryOptions(str(tmp_path / "certs.d"), default_scheme="https")
        async with repository(f"{registry.address}/x:1", options) as target:
            manifest = await push_image(target, SMALL)
            assert await target.resolve() == manifest.descriptor


@pytest.mark.parametrize(
    ("names", "days", "reason"),
    [
        ("IP:127.0.0.1", -1, "its certificate has expired"),
        ("DNS:elsewhere.example", 2, "its certificate is for another"),
    ],
)
async def test_a_certificate_that_does_not_do_is_named(tmp_path: Path, names: str, days: int, reason: str) -> None:
    certificate = Certificate.make(tmp_path, names, days)
    with serve(tmp_path / "tls", tls=certificate) as registry:
        directory = registry.host_dir(
            f'server = "https://{registry.address}"\nca = "{certificate.certificate}"\nskip_verify = false'
        )
        async with repository(f"{registry.address}/x:1", RegistryOptions(str(directory))) as target:
            with pytest.raises(FailedPrecondition, match=reason) as caught:
                await target.resolve()
        assert f"{registry.address}/x:1" in str(caught.value)


async def test_basic_authentication(tmp_path: Path) -> None:
    with serve(tmp_path / "basic", basic=True) as registry:
        credentials = FixedCredentials(USER, PASSWORD)
        async with repository(f"{registry.address}/x:1", RegistryOptions(credentials=credentials)) as target:
            manifest = await push_image(target, SMALL)
            assert await target.resolve() == manifest.descriptor
        assert credentials.asked == [registry.address]
        wrong = RegistryOptions(credentials=FixedCredentials(USER, "not it"))
        async with repository(f"{registry.address}/x:1", wrong) as target:
            with pytest.raises(Unauthenticated, match="user name or password is wrong") as caught:
                await target.resolve()
            assert "not it" not in str(caught.value)
        async with repository(f"{registry.address}/x:1") as target:
            with pytest.raises(Unauthenticated, match="no basic auth credentials"):
                await target.resolve()


@pytest.mark.parametrize("form", [True, False])
async def test_token_authentication(tmp_path: Path, form: bool) -> None:
    with token_server(tmp_path) as tokens, serve(tmp_path / "token", tokens=tokens) as registry:
        tokens.form = form
        source, other = f"{registry.address}/team/x:1", f"{registry.address}/team/y:1"
        options = RegistryOptions(credentials=FixedCredentials(USER, PASSWORD))
        async with repository(source, options) as target:
            manifest = await push_image(target, SMALL)
        methods = {question.method for question in tokens.asked}
        assert methods == ({"POST"} if form else {"GET"})
        async with repository(other, options) as target:
            assert not await target.push(SMALL.descriptor, reader_of(b""), mount_from=["team/x"])
        assert "repository:team/x:pull" in " ".join(tokens.asked[-1].scopes)
        async with repository(source) as anonymous:
            tokens.asked.clear()
            assert await anonymous.resolve() == manifest.descriptor
            assert await fetched(anonymous, SMALL.descriptor) == SMALL.data
            # One token does for all requests of one scope.
            assert [(question.user, question.scopes) for question in tokens.asked] == [("", ["repository:team/x:pull"])]
            with pytest.raises(Unauthenticated, match="push access denied"):
                await anonymous.push(Document.of(b"new").descriptor, reader_of(b"new"))


async def test_a_refresh_token_is_given_for_tokens(tmp_path: Path) -> None:
    with token_server(tmp_path) as tokens, serve(tmp_path / "token", tokens=tokens) as registry:
        options = RegistryOptions(credentials=FixedCredentials("", PASSWORD))
        async with repository(f"{registry.address}/x:1", options) as target:
            await push_image(target, SMALL)
        assert {question.grant for question in tokens.asked} == {"refresh_token"}


async def test_a_wrong_password_for_tokens_is_told(tmp_path: Path) -> None:
    with token_server(tmp_path) as tokens, serve(tmp_path / "token", tokens=tokens) as registry:
        options = RegistryOptions(credentials=FixedCredentials(USER, "secret-and-wrong"))
        async with repository(f"{registry.address}/x:1", options) as target:
            with pytest.raises(Unauthenticated, match="wrong password") as caught:
                await target.resolve()
        assert "secret-and-wrong" not in str(caught.value)


async def test_tokens_are_renewed_when_they_expire(tmp_path: Path) -> None:
    with token_server(tmp_path) as tokens, serve(tmp_path / "token", tokens=tokens) as registry:
        tokens.seconds = 1
        options = RegistryOptions(credentials=FixedCredentials(USER, PASSWORD))
        async with repository(f"{registry.address}/x:1", options) as target:
            await target.push(SMALL.descriptor, reader_of(SMALL.data))
            before = len(tokens.asked)
            while len(tokens.asked) == before:
                assert await fetched(target, SMALL.descriptor) == SMALL.data


async def test_nobody_there_is_told(plain: Registry) -> None:
    async with repository("127.0.0.1:1/x:1") as target:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1/x:1: .*[Rr]efused"):
            await target.resolve()
