"""Token servers that are busy, or answer with no token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from faulty_registry import FOREVER, Fault, FaultyRegistry, status
from registry_world import Document, FixedCredentials, image_of, repository

from orlop.core import media
from orlop.core.registry import RegistryOptions
from orlop.errors import OrlopError
from orlop.registry.repository import HostedRepository

MANIFEST = image_of(Document.of(b"small"))[1]


def answering(body: str) -> Fault:
    async def fault(_: FaultyRegistry, request: web.Request) -> web.StreamResponse:
        return web.Response(text=body, content_type="application/json")

    return fault


@asynccontextmanager
async def guarded() -> AsyncIterator[tuple[FaultyRegistry, HostedRepository]]:
    """A registry that asks for a token, its own token server at `/token`."""
    async with FaultyRegistry() as registry:
        registry.add_manifest("r", "1", MANIFEST.data, media.OCI_MANIFEST)
        challenge = f'Bearer realm="http://{registry.address}/token",service=s'
        registry.on("HEAD", "/manifests/", status(401, {"WWW-Authenticate": challenge}))
        options = RegistryOptions(default_scheme="http", credentials=FixedCredentials("u", "very-secret"))
        async with repository(f"{registry.address}/r:1", options) as target:
            yield registry, target


@pytest.mark.parametrize("code", [408, 429, 500, 503])
async def test_a_token_server_that_is_busy_is_asked_again(code: int) -> None:
    async with guarded() as (registry, target):
        registry.on("", "/token", status(code), times=2)
        registry.on("", "/token", answering('{"token": "t"}'))
        assert await target.resolve() == MANIFEST.descriptor
        assert registry.seen[-1].headers["Authorization"] == "Bearer t"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("no JSON", "no JSON object with a token"),
        ("[]", "no JSON object with a token"),
        ("{}", "did not include a token"),
        ('{"token": "a\\nb"}', "cannot be sent"),
    ],
)
async def test_an_answer_that_has_no_token_is_told_with_who_gave_it(body: str, why: str) -> None:
    async with guarded() as (registry, target):
        registry.on("", "/token", answering(body), times=FOREVER)
        with pytest.raises(
            OrlopError, match=f"{registry.address}/r:1: .*http://{registry.address}/token.*{why}"
        ) as caught:
            await target.resolve()
        assert "very-secret" not in str(caught.value)
