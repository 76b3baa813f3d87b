"""Blobs and documents on their way to a registry (OCI distribution-spec, push)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from urllib.parse import urlencode, urljoin, urlsplit, urlunsplit

from orlop.core import media
from orlop.core.content import Reader
from orlop.core.descriptor import Descriptor
from orlop.core.numbers import parse_uint
from orlop.core.reference import Reference
from orlop.errors import DataLoss, OrlopError, OutOfRange
from orlop.registry.endpoint import Endpoint, failure
from orlop.registry.failures import Broken, GivenUp
from orlop.registry.ranges import uploaded
from orlop.registry.redaction import printable, redact
from orlop.registry.retries import Retries
from orlop.registry.scopes import repository_scope
from orlop.registry.settings import Settings
from orlop.registry.transport import Answer, Body

OpenReader = Callable[[], Awaitable[Reader]]
_PIECE = 1 << 20
_DOCUMENT_LIMIT = 8 << 20
_REPOSITORY = re.compile(r"[a-z0-9._/-]+", re.ASCII)


class Upload:
    """One blob or document for the repository of `reference` at one host."""

    def __init__(
        self,
        endpoint: Endpoint,
        reference: Reference,
        descriptor: Descriptor,
        open_reader: OpenReader,
        settings: Settings,
        progress: Callable[[int], None],
    ) -> None:
        self._endpoint = endpoint
        self._reference = reference
        self._descriptor = descriptor
        self._open_reader = open_reader
        self._settings = settings
        self._progress = progress
        self._scopes = (repository_scope(reference.path, "pull", "push"),)

    async def exists(self, path: str) -> bool:
        """Whether the host has it under `path`: a digest, or a tag that stands for the digest."""
        headers = {"Accept": f"{self._descriptor.media_type}, */*"}
        async with self._endpoint.request(
            "HEAD", self._endpoint.url(path), headers=headers, scopes=self._scopes
        ) as answer:
            if answer.status == 200:
                digest = answer.header("Docker-Content-Digest")
                return path.endswith(self._descriptor.digest) or digest == self._descriptor.digest
            if answer.status in (401, 403) or answer.status >= 500:
                raise await failure(answer)
            # Anything else says nothing about whether it may be sent.
            return False

    async def document(self, path: str) -> Answer:
        """Sends a manifest or index to `path`; the answer's headers say what the registry made of it."""
        data = await self.read_document()
        async with self._endpoint.request(
            "PUT",
            self._endpoint.url(path),
            headers={"Content-Type": self._descriptor.media_type},
            body=Body.of(data),
            scopes=self._scopes,
        ) as answer:
            if answer.status not in (200, 201, 202):
                raise await failure(answer)
            self._check_digest(answer)
            await answer.drain()
            self._progress(len(data))
            return answer

    async def read_document(self) -> bytes:
        size = self._descriptor.size
        if size > _DOCUMENT_LIMIT:
            raise OutOfRange(
                f"{self._descriptor.digest}: a document of {size} bytes, at most {_DOCUMENT_LIMIT} are sent"
            )
        return b"".join([piece async for piece in self._pieces(0, size)])

    async def blob(self, mount_from: Sequence[str]) -> bool:
        """Sends the blob; False if the registry took it from one of the repositories `mount_from`."""
        retries = Retries(self._settings)
        chunk = self._first_chunk()
        while True:
            location, minimum = await self._begin(mount_from)
            if not location:
                return False
            try:
                if chunk:
                    location = await self._chunks(location, max(chunk, minimum))
                    await self._finish(location, self._descriptor.size)
                else:
                    await self._finish(location, 0)
            except _BeginAnew as error:
                if not retries.another():
                    raise error.cause from None
                # What broke off in one request may pass in several, and then less is lost.
                chunk = chunk or self._settings.resume_chunk
                await retries.wait()
                continue
            self._progress(self._descriptor.size)
            return True

    def _first_chunk(self) -> int:
        limit = self._settings.upload_chunk
        return limit if limit and self._descriptor.size > limit else 0

    async def _begin(self, mount_from: Sequence[str]) -> tuple[str, int]:
        """Where to send the blob, and the least size of a chunk; nowhere if it was mounted."""
        query: list[tuple[str, str]] = []
        scopes: tuple[str, ...] = self._scopes
        source = next((path for path in mount_from if _REPOSITORY.fullmatch(path)), "")
        if source and source != self._reference.path:
            query = [("mount", self._descriptor.digest), ("from", source)]
            scopes = (*scopes, repository_scope(source, "pull"))
        try:
            return await self._post(query, scopes)
        except OrlopError as error:
            # Who may push here may yet not be let read there.
            if not query or isinstance(error, GivenUp):
                raise
            return await self._post([], self._scopes)

    async def _post(self, query: list[tuple[str, str]], scopes: Sequence[str]) -> tuple[str, int]:
        url = self._endpoint.url("blobs/uploads/", query)
        async with self._endpoint.request("POST", url, body=Body.of(b""), scopes=scopes) as answer:
            if answer.status == 201:
                self._check_digest(answer)
                return "", 0
            if answer.status not in (200, 202):
                raise await failure(answer)
            return self._location(answer, url), parse_uint(answer.header("OCI-Chunk-Min-Length")) or 0

    async def _finish(self, location: str, offset: int) -> None:
        """The closing PUT, with the bytes from `offset` on."""
        url = _with_digest(location, self._descriptor.digest)
        size = self._descriptor.size - offset
        try:
            async with self._endpoint.request(
                "PUT",
                url,
                headers={"Content-Type": "application/octet-stream"},
                body=Body(size, lambda: self._pieces(offset, size)),
                scopes=self._scopes,
                again=False,
            ) as answer:
                if answer.status in (201, 202, 204):
                    self._check_digest(answer)
                    return
                error = await failure(answer)
                if answer.status in (404, 408, 413, 416, 429) or answer.status >= 500:
                    raise _BeginAnew(error)
                raise error
        except (Broken, GivenUp) as error:
            raise _BeginAnew(error) from None

    async def _chunks(self, location: str, chunk: int) -> str:
        """Sends all bytes in chunks; returns where the upload is to be finished."""
        offset = 0
        retries = Retries(self._settings)
        while offset < self._descriptor.size:
            end = min(offset + chunk, self._descriptor.size)
            try:
                location, offset = await self._chunk(location, offset, end)
                retries.restart()
            except _BeginAnew as error:
                if not retries.another():
                    raise
                await retries.wait()
                location, offset = await self._standing(location, error)
        return location

    async def _chunk(self, location: str, start: int, end: int) -> tuple[str, int]:
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{start}-{end - 1}"}
        try:
            async with self._endpoint.request(
                "PATCH",
                location,
                headers=headers,
                body=Body(end - start, lambda: self._pieces(start, end - start)),
                scopes=self._scopes,
                again=False,
            ) as answer:
                if answer.status not in (202, 204):
                    raise _BeginAnew(await failure(answer))
                there = uploaded(answer.header("Range"))
                following = end if there is None else there
                if not start < following <= end:
                    raise DataLoss(f"{answer.request.shown}: {following} bytes are there, {end} were sent")
                return self._location(answer, location), following
        except (Broken, GivenUp) as error:
            raise _BeginAnew(error) from None

    async def _standing(self, location: str, cause: _BeginAnew) -> tuple[str, int]:
        """Where a broken upload stands. Raises `cause` if the registry cannot say."""
        try:
            async with self._endpoint.request("GET", location, scopes=self._scopes) as answer:
                there = uploaded(answer.header("Range"))
                if answer.status not in (200, 204) or there is None or there > self._descriptor.size:
                    raise cause
                return self._location(answer, location), there
        except OrlopError:
            raise cause from None

    async def _pieces(self, offset: int, size: int) -> AsyncIterator[bytes]:
        reader = await self._open_reader()
        try:
            end = offset + size
            while offset < end:
                piece = await reader.read(offset, min(_PIECE, end - offset))
                if not piece:
                    raise DataLoss(f"{self._descriptor.digest}: {offset} bytes are stored, not {self._descriptor.size}")
                yield piece
                offset += len(piece)
                self._progress(offset)
        finally:
            await reader.close()

    def _location(self, answer: Answer, asked: str) -> str:
        location = answer.header("Location")
        try:
            url = urljoin(answer.request.url, location) if location else asked
            parts = urlsplit(url)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise DataLoss(f"{answer.request.shown}: Location {printable(location, 200)!r} is no URL")
        if parts.scheme == "http" and asked.startswith("https:"):
            # Registries behind a proxy that ends TLS often do not know that they are https.
            parts = parts._replace(scheme="https") if parts.netloc == urlsplit(asked).netloc else parts
            if parts.scheme == "http":
                raise DataLoss(f"{answer.request.shown}: Location {redact(url)} is http, the registry https")
        return urlunsplit(parts)

    def _check_digest(self, answer: Answer) -> None:
        said = answer.header("Docker-Content-Digest")
        wanted = self._descriptor.digest
        if said and said.partition(":")[0] == wanted.partition(":")[0] and said != wanted:
            raise DataLoss(f"{answer.request.shown}: got digest {printable(said, 150)}, {wanted} was sent")


class _BeginAnew(Exception):
    """The upload cannot go on as it is; `cause` is why."""

    def __init__(self, cause: OrlopError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _with_digest(location: str, digest: str) -> str:
    # The rest of the query stays as it is to the byte: it may be signed.
    return f"{location}{'&' if urlsplit(location).query else '?'}{urlencode({'digest': digest})}"


def is_document(descriptor: Descriptor) -> bool:
    """Whether registries keep it among manifests and not among blobs."""
    return media.is_manifest(descriptor.media_type) or media.is_index(descriptor.media_type)
