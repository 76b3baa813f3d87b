"""Credentials: docker's `config.json`, and programs that keep passwords."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from faulty_registry import FOREVER, FaultyRegistry, status
from hypothesis import given
from hypothesis import strategies as st
from registry_world import repository

from orlop.core import media
from orlop.core.registry import Credential, RegistryOptions
from orlop.errors import FailedPrecondition, InvalidArgument, OrlopError
from orlop.registry.credential_helper import CredentialHelper
from orlop.registry.docker_config import DockerConfig, default_path


def auth(user: str, secret: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{secret}".encode()).decode()}


async def looked_up(
    directory: Path, document: Any, host: str = "h:5000", reference: str = "h:5000/a/b:1"
) -> Credential | None:
    path = directory / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return await DockerConfig(str(path)).of(host, reference, [])


@pytest.mark.parametrize(
    ("auths", "host", "expected"),
    [
        ({"h:5000": auth("u", "p:q")}, "h:5000", Credential("u", "p:q")),
        ({"https://h:5000": auth("u", "p")}, "h:5000", Credential("u", "p")),
        ({"https://h:5000/v2/": auth("u", "p")}, "h:5000", Credential("u", "p")),
        ({"h": auth("u", "p")}, "h:5000", None),
        ({"h:5000.evil.example": auth("u", "p")}, "h:5000", None),
        ({"evil.example/h:5000": auth("u", "p")}, "h:5000", None),
        ({"h:5000": auth("u", "p"), "h:5000/a": auth("v", "q")}, "h:5000", Credential("v", "q")),
        ({"h:5000/a/b/c": auth("v", "q"), "h:5000/ab": auth("w", "q")}, "h:5000", None),
        ({"https://index.docker.io/v1/": auth("u", "p")}, "registry-1.docker.io", Credential("u", "p")),
        ({"docker.io": auth("u", "p")}, "registry-1.docker.io", Credential("u", "p")),
        ({"https://index.docker.io/v1/": auth("u", "p")}, "h:5000", None),
        ({"h:5000": {"username": "u", "password": "p"}}, "h:5000", Credential("u", "p")),
        ({"h:5000": {**auth("u", ""), "identitytoken": "t"}}, "h:5000", Credential("", "t")),
        ({"h:5000": {}}, "h:5000", None),
    ],
)
async def test_entries_are_matched_exactly(
    tmp_path: Path, auths: dict[str, Any], host: str, expected: Credential | None
) -> None:
    assert await looked_up(tmp_path, {"auths": auths}, host) == expected


@pytest.mark.parametrize(
    "document",
    ["{", "[]", '{"auths": []}', '{"auths":{"h:5000":{"auth":"?"}}}', '{"auths":{"h:5000":{"auth":"dQ=="}}}'],
)
async def test_a_broken_file_is_named_and_gives_nothing_away(tmp_path: Path, document: str) -> None:
    with pytest.raises(InvalidArgument, match=r"config\.json"):
        await looked_up(tmp_path, document)


async def test_no_file_has_no_credentials(tmp_path: Path) -> None:
    assert await DockerConfig(str(tmp_path / "none")).of("h", "h/x", []) is None
    assert default_path({"DOCKER_CONFIG": "/d"}) == "/d/config.json"
    assert default_path({"HOME": "/home/u"}) == "/home/u/.docker/config.json"


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A helper `test` whose body tests write."""
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "docker-credential-test"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return program


async def test_a_helper_is_asked_by_standard_input(tmp_path: Path, helper: Path) -> None:
    helper.write_text(
        f'#!/bin/sh\nread server || true\necho "$1 $server" >>{tmp_path}/asked\n'
        'echo \'{"ServerURL":"x","Username":"u","Secret":"p"}\'\n'
    )
    both = {"credHelpers": {"h:5000": "test"}, "auths": {"h:5000": auth("other", "x")}}
    assert await looked_up(tmp_path, both) == Credential("u", "p")
    assert await looked_up(tmp_path, {"credsStore": "test"}, "registry-1.docker.io") == Credential("u", "p")
    assert (tmp_path / "asked").read_text() == "get h:5000\nget https://index.docker.io/v1/\n"


async def test_a_helpers_token_is_a_refresh_token(tmp_path: Path, helper: Path) -> None:
    helper.write_text('#!/bin/sh\necho \'{"Username":"<token>","Secret":"t"}\'\n')
    assert await looked_up(tmp_path, {"credsStore": "test"}) == Credential("", "t")


async def test_a_helper_that_has_nothing_leaves_the_file(tmp_path: Path, helper: Path) -> None:
    helper.write_text("#!/bin/sh\necho credentials not found in native keychain\nexit 1\n")
    document = {"credsStore": "test", "auths": {"h:5000": auth("u", "p")}}
    assert await looked_up(tmp_path, document) == Credential("u", "p")


@pytest.mark.parametrize(
    "body",
    [
        "exit 3",
        "echo some-secret",
        "head -c 100000 /dev/zero; sleep 100",
        "echo '{\"Secret\": 1}'",
    ],
)
async def test_a_helper_that_fails_is_an_error_and_no_other_password_is_sent(
    tmp_path: Path, helper: Path, body: str
) -> None:
    helper.write_text(f"#!/bin/sh\n{body}\n")
    document = {"credsStore": "test", "auths": {"h:5000": auth("u", "p")}}
    with pytest.raises(FailedPrecondition, match="docker-credential-test") as caught:
        await looked_up(tmp_path, document)
    assert "some-secret" not in str(caught.value)


def test_a_helper_that_hangs_is_ended(helper: Path) -> None:
    helper.write_text("#!/bin/sh\nsleep 100 & sleep 100\n")
    with pytest.raises(FailedPrecondition, match=r"no end within 0\.2 s"):
        CredentialHelper("test", 0.2).get("h")


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", "a b", "a\n", "x;y", "ä"])
async def test_a_helper_has_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="credential helper"):
        CredentialHelper(name)
    if name:
        with pytest.raises(InvalidArgument, match="credential helper"):
            await looked_up(tmp_path, {"credHelpers": {"h:5000": name}})


async def test_a_helper_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="docker-credential-nobody-has-it: not found"):
        await looked_up(tmp_path, {"credsStore": "nobody-has-it"})


async def test_credentials_are_kept_and_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.json"
    config = DockerConfig(str(path))
    assert await config.erase("h:5000") == ""
    assert await config.store("h:5000", Credential("u", "p")) == str(path)
    await config.store("docker.io", Credential("d", "q"))
    await config.store("t.example", Credential("", "token"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert await config.of("h:5000", "h:5000/x", []) == Credential("u", "p")
    assert await config.of("registry-1.docker.io", "docker.io/x", []) == Credential("d", "q")
    assert await config.of("t.example", "t.example/x", []) == Credential("", "token")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"psFormat": "kept"}))
    assert await config.erase("h:5000") == str(path)
    assert await config.of("h:5000", "h:5000/x", []) is None
    assert json.loads(path.read_text())["psFormat"] == "kept"
    assert os.listdir(path.parent) == ["config.json"]


async def test_a_helper_keeps_and_forgets(tmp_path: Path, helper: Path) -> None:
    helper.write_text(
        f"#!/bin/sh\ncase $1 in store) cat >{tmp_path}/kept;; erase) rm {tmp_path}/kept;; "
        f"get) cat {tmp_path}/kept 2>&- || {{ echo credentials not found in native keychain; exit 1; }};; esac\n"
    )
    (tmp_path / "config.json").write_text('{"credsStore":"test"}')
    config = DockerConfig(str(tmp_path / "config.json"))
    assert await config.erase("h") == ""
    assert await config.store("h", Credential("u", "p")) == "docker-credential-test"
    assert await config.of("h", "h/x", []) == Credential("u", "p")
    assert "p" not in json.loads((tmp_path / "config.json").read_text())
    assert await config.erase("h") == "docker-credential-test"
    assert await config.of("h", "h/x", []) is None


@given(
    st.recursive(
        st.one_of(st.none(), st.text(max_size=5), st.integers()),
        lambda x: st.dictionaries(
            st.sampled_from(["auths", "credHelpers", "credsStore", "auth", "h:5000", "identitytoken", "username"]),
            x,
            max_size=3,
        ),
        max_leaves=6,
    )
)
def test_a_document_of_any_shape_is_read_or_refused(document: Any) -> None:
    import asyncio
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        try:
            found = asyncio.run(looked_up(Path(directory), document))
        except OrlopError:
            return
        assert found is None or found.secret or found.username


async def test_what_is_kept_for_a_registrys_name_is_for_its_server_and_for_no_mirror(tmp_path: Path) -> None:
    asks = status(401, {"WWW-Authenticate": 'Basic realm="x"'})
    async with FaultyRegistry() as mirror, FaultyRegistry() as server:
        mirror.on("", "", asks, times=FOREVER)
        server.on("", "", asks)
        server.add_manifest("r", "1", b"{}", media.OCI_MANIFEST)
        (tmp_path / "registry.example").mkdir()
        (tmp_path / "registry.example" / "hosts.toml").write_text(
            f'server = "http://{server.address}"\n[host."http://{mirror.address}"]\n'
        )
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"auths": {"registry.example": auth("u", "very-secret")}}))
        options = RegistryOptions(str(tmp_path), credentials=DockerConfig(str(path)))
        async with repository("registry.example/r:1", options) as target:
            await target.resolve()
        assert {seen.headers.get("Authorization") for seen in mirror.seen} == {None}
        assert server.seen[-1].headers["Authorization"].startswith("Basic ")
