"""A repository at its registry and that registry's mirrors, for one operation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from urllib.parse import urlsplit

from orlop.core import digest as digests
from orlop.core.content import Reader
from orlop.core.descriptor import Descriptor
from orlop.core.reference import Reference, is_host
from orlop.errors import InvalidArgument, NotFound, OrlopError, OutOfRange
from orlop.registry import referrers, resolve
from orlop.registry.bandwidth import Bandwidth, Budget
from orlop.registry.download import Download
from orlop.registry.endpoint import Endpoint
from orlop.registry.failures import Denied
from orlop.registry.hosts import Capability, Host
from orlop.registry.outcomes import Outcome
from orlop.registry.settings import Settings
from orlop.registry.source import Source
from orlop.registry.transport import is_local
from orlop.registry.upload import Upload, is_document

OpenReader = Callable[[], Awaitable[Reader]]
_MAX_URLS = 10


class HostedRepository:
    """What `reference` names, at `endpoints` in their order."""

    def __init__(
        self,
        reference: Reference,
        endpoints: Sequence[Endpoint],
        anonymous: Callable[[Host], Endpoint],
        settings: Settings,
        extra: Budget,
        bandwidth: Bandwidth,
    ) -> None:
        self.reference = str(reference)
        self._name = reference
        self._endpoints = endpoints
        self._anonymous = anonymous
        self._settings = settings
        self._extra = extra
        self._bandwidth = bandwidth

    async def resolve(self) -> Descriptor:
        return await resolve.resolve(self._name, self._endpoints)

    @asynccontextmanager
    async def fetch(self, descriptor: Descriptor, offset: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        what = f"{self.reference}: {descriptor.digest}"
        digests.validate(descriptor.digest, self.reference)
        if not 0 <= offset <= max(descriptor.size, 0):
            raise OutOfRange(f"{what}: offset {offset} of {descriptor.size} bytes")
        sources = self._sources(descriptor)
        download = Download(what, descriptor, offset, sources, self._settings, self._extra, self._bandwidth)
        try:
            async with aclosing(download.chunks()) as chunks:
                yield chunks
        finally:
            await download.close()

    async def push(
        self,
        descriptor: Descriptor,
        open_reader: OpenReader,
        *,
        mount_from: Sequence[str] = (),
        progress: Callable[[int], None] = lambda _: None,
    ) -> bool:
        upload = self._upload(descriptor, open_reader, progress)
        with self._pushing(descriptor):
            if is_document(descriptor):
                path = f"manifests/{descriptor.digest}"
                if await upload.exists(path):
                    return False
                await self._send_document(upload, path, descriptor)
                return True
            if await upload.exists(f"blobs/{descriptor.digest}"):
                return False
            return await upload.blob(mount_from)

    async def tag(self, descriptor: Descriptor, open_reader: OpenReader) -> None:
        if not self._name.object:
            raise InvalidArgument.verbatim(f"{self.reference}: object required (a tag or digest)")
        if self._name.digest and self._name.digest != descriptor.digest:
            raise InvalidArgument(f"{self.reference}: cannot be pushed as {descriptor.digest}")
        upload = self._upload(descriptor, open_reader, lambda _: None)
        path = f"manifests/{self._name.tag or self._name.digest}"
        with self._pushing(descriptor):
            if not await upload.exists(path):
                await self._send_document(upload, path, descriptor)

    async def referrers(self, digest: str, artifact_type: str = "") -> list[Descriptor]:
        outcome = Outcome()
        for endpoint in self._with(Capability.REFERRERS, "referrers"):
            try:
                return await referrers.referrers(endpoint, digest, artifact_type)
            except OrlopError as error:
                outcome.add(error, endpoint.host.address)
        raise outcome.error(f"{self.reference}: referrers of {digest}")

    async def close(self) -> None:
        """Connections belong to the daemon: there is nothing to give back."""

    async def _send_document(self, upload: Upload, path: str, descriptor: Descriptor) -> None:
        answer = await upload.document(path)
        await referrers.refer(self._pusher, self._name.path, descriptor, await upload.read_document(), answer)

    def _upload(self, descriptor: Descriptor, open_reader: OpenReader, progress: Callable[[int], None]) -> Upload:
        digests.validate(descriptor.digest, self.reference)
        return Upload(self._pusher, self._name, descriptor, open_reader, self._settings, progress)

    @property
    def _pusher(self) -> Endpoint:
        return self._with(Capability.PUSH, "push")[0]

    def _with(self, capability: Capability, verb: str) -> list[Endpoint]:
        endpoints = [endpoint for endpoint in self._endpoints if capability in endpoint.host.capabilities]
        if not endpoints:
            raise NotFound(f"{self.reference}: no {verb} hosts")
        return endpoints

    def _pushing(self, descriptor: Descriptor) -> _Named:
        return _Named(f"{self.reference}: {descriptor.digest}")

    def _sources(self, descriptor: Descriptor) -> list[Source]:
        endpoints = self._with(Capability.PULL, "pull")
        headers = {"Accept": f"{descriptor.media_type}, */*"}
        sources = [
            Source(self._anonymous(host), url, descriptor.size, {}, last=False)
            for url, host in _elsewhere(descriptor.urls, endpoints)
        ]
        paths = ("manifests", "blobs") if is_document(descriptor) else ("blobs",)
        for path in paths:
            for endpoint in endpoints:
                url = endpoint.url(f"{path}/{descriptor.digest}")
                last = endpoint is endpoints[-1]
                sources.append(Source(endpoint, url, descriptor.size, headers, last=last))
        return sources


class _Named:
    """Says, of what goes wrong inside, what it was about."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Denied):
            error = error.within("push access denied, repository does not exist or may require authorization")
        if isinstance(error, OrlopError):
            raise error.within(self._what) from None


def _elsewhere(urls: Sequence[str], endpoints: Sequence[Endpoint]) -> list[tuple[str, Host]]:
    """The URLs of a descriptor that may be asked: of other machines, unless the registry is of this one."""
    found = []
    trusted = any(endpoint.host.is_loopback for endpoint in endpoints)
    for url in urls[:_MAX_URLS]:
        try:
            parts = urlsplit(url)
            name = (parts.hostname or "").lower()
        except ValueError:
            continue
        if parts.scheme in ("http", "https") and is_host(parts.netloc) and (trusted or not is_local(name)):
            found.append((url, Host(parts.scheme, parts.netloc, "")))
    return found
