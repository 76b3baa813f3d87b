"""Trying credentials, and requests at a time to a host that turns out to speak http."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_registry import PASSWORD, USER, Registry, serve, token_server
from registry_world import Document, FixedCredentials, reader_of, repository

from orlop.errors import InvalidArgument, Unauthenticated, Unavailable
from orlop.registry import login

pytestmark = pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with serve(tmp_path_factory.mktemp("guarded"), basic=True) as registry:
        yield registry


async def test_credentials_that_the_registry_takes_pass(guarded: Registry) -> None:
    given = FixedCredentials(USER, PASSWORD)
    await login.check(guarded.address, given)
    assert given.asked == [guarded.address]


async def test_credentials_that_it_refuses_do_not(guarded: Registry) -> None:
    with pytest.raises(Unauthenticated, match=guarded.address) as caught:
        await login.check(guarded.address, FixedCredentials(USER, "something else"))
    assert "something else" not in str(caught.value)


async def test_a_login_by_token_asks_for_no_scope(tmp_path: Path) -> None:
    with token_server(tmp_path) as tokens, serve(tmp_path / "token", tokens=tokens) as registry:
        await login.check(registry.address, FixedCredentials(USER, PASSWORD))
        assert [(asked.user, asked.scopes) for asked in tokens.asked] == [(USER, [])]
        with pytest.raises(Unauthenticated, match=f"{registry.address}.*wrong password") as caught:
            await login.check(registry.address, FixedCredentials(USER, "something else"))
        assert "something else" not in str(caught.value)


async def test_a_login_by_token_to_a_server_without_the_oauth_form(tmp_path: Path) -> None:
    with token_server(tmp_path) as tokens, serve(tmp_path / "token", tokens=tokens) as registry:
        tokens.form = False
        await login.check(registry.address, FixedCredentials(USER, PASSWORD))
        assert [(asked.method, asked.user) for asked in tokens.asked] == [("GET", USER)]


async def test_the_directories_of_hosts_are_read(guarded: Registry, tmp_path: Path) -> None:
    directory = tmp_path / "registry.test"
    directory.mkdir()
    (directory / "hosts.toml").write_text(f'server = "http://{guarded.address}"\n')
    given = FixedCredentials(USER, PASSWORD)
    await login.check("registry.test", given, host_dirs=[str(tmp_path)])
    assert given.asked


async def test_what_is_no_registry_is_told() -> None:
    with pytest.raises(InvalidArgument, match="is no registry"):
        await login.check("https://x/", FixedCredentials(USER, PASSWORD))
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        await login.check("127.0.0.1:9", FixedCredentials(USER, PASSWORD))


async def test_requests_at_a_time_all_find_out_that_a_host_speaks_http(tmp_path: Path) -> None:
    blobs = [Document.of(b"blob %d" % number) for number in range(12)]
    with serve(tmp_path / "plain") as registry:
        async with repository(f"{registry.address}/many:1") as target:
            sent = await asyncio.gather(*(target.push(blob.descriptor, reader_of(blob.data)) for blob in blobs))
    assert sent == [True] * len(blobs)
