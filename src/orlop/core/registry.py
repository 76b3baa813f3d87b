"""Registries: what a reference stands for, and how its content comes and goes (OCI distribution-spec).

A `Repository` is one reference at one registry, with its mirrors; rooms that pull and push know no more than this.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from orlop.core.content import Reader
from orlop.core.descriptor import Descriptor


@dataclass(frozen=True, slots=True)
class Credential:
    """A user and a secret; without a user the secret is a refresh token."""

    username: str
    secret: str = field(repr=False)


class Credentials(Protocol):
    """Where credentials come from: a file, a helper program, the client's own stream."""

    async def of(self, host: str, reference: str, challenges: Sequence[str]) -> Credential | None:
        """The credential for `host` (`name[:port]`), which sent `challenges` (`WWW-Authenticate`); None for none."""


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """How registries are reached, as a client says it for one operation."""

    host_dir: str = ""
    """The directory of `<host>/hosts.toml`; empty for none."""
    default_scheme: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with each request to the hosts of the reference."""
    credentials: Credentials | None = None
    log: Callable[[str], None] | None = None
    """Told of requests and answers, for people who look for a fault; never of secrets."""


class Repository(Protocol):
    """The registries that hold one reference."""

    reference: str

    async def resolve(self) -> Descriptor:
        """What the reference points at. Raises NotFound, PermissionDenied, Unauthenticated, Unavailable, Unknown."""

    def fetch(self, descriptor: Descriptor, offset: int = 0) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The bytes of a blob or document from `offset`, from the first host that gives them, as they arrive. Digest
        and size are the caller's to check."""

    async def push(
        self,
        descriptor: Descriptor,
        open_reader: Callable[[], Awaitable[Reader]],
        *,
        mount_from: Sequence[str] = (),
        progress: Callable[[int], None] = lambda _: None,
    ) -> bool:
        """Uploads a blob or document unless it is there; False if it was. `mount_from`: repositories of the same
        registry that have it. `progress` is told how many of its bytes have gone so far; where an upload has to begin
        anew the number falls back. A manifest goes by its digest, the root by `tag`."""

    async def tag(self, descriptor: Descriptor, open_reader: Callable[[], Awaitable[Reader]]) -> None:
        """Uploads the root document under the reference's own tag or digest."""

    async def referrers(self, digest: str, artifact_type: str = "") -> list[Descriptor]:
        """What refers to `digest` in this repository (signatures, bills of materials), of one artifact type or all."""

    async def close(self) -> None: ...


class Registries(Protocol):
    """Gives repositories; one for the daemon, so that connections, tokens and limits are shared."""

    def repository(self, reference: str, options: RegistryOptions) -> Repository:
        """Raises InvalidArgument for what is no full reference (`host/path[:tag][@digest]`)."""
