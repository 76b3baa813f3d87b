"""One place that has a blob or document, and how to open it there at an offset."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from orlop.errors import DataLoss, NotFound
from orlop.registry.endpoint import Endpoint, failure
from orlop.registry.failures import Broken
from orlop.registry.ranges import ContentRange, requested
from orlop.registry.redaction import printable, redact
from orlop.registry.transport import Answer

_STALE = frozenset({400, 401, 403, 404, 410})


class WrongRange(DataLoss):
    """The answer is of other bytes than were asked for; without a range they may be had."""


class Source:
    """A URL at a host. Where it redirects to is remembered, so that the next range of the blob costs one request."""

    def __init__(self, endpoint: Endpoint, url: str, size: int, headers: Mapping[str, str], *, last: bool) -> None:
        self._endpoint = endpoint
        self._url = url
        self._size = size
        self._headers = headers
        self._last = last
        self._direct = ""

    @property
    def shown(self) -> str:
        return redact(self._url)

    @property
    def host(self) -> str:
        return self._endpoint.host.address

    @asynccontextmanager
    async def open(self, start: int, end: int | None, *, ranged: bool = True) -> AsyncIterator[Part]:
        """The bytes from `start` up to and without `end`, or to the content's end.

        Raises WrongRange for an answer with other bytes, NotFound, and what other refusals stand for.
        """
        headers = dict(self._headers)
        if ranged and (start or end is not None):
            headers["Range"] = requested(start, end)
        if self._direct:
            async with self._endpoint.request("GET", self._direct, headers=headers, last=self._last) as answer:
                if answer.status not in _STALE:
                    yield await self._part(answer, start, end)
                    return
            self._direct = ""
        async with self._endpoint.request("GET", self._url, headers=headers, last=self._last) as answer:
            part = await self._part(answer, start, end)
            if not answer.is_own:
                self._direct = answer.request.url
            yield part

    async def _part(self, answer: Answer, start: int, end: int | None) -> Part:
        if answer.status == 206:
            return self._ranged(answer, start, self._size if end is None else end)
        if answer.status == 200:
            if answer.size is not None and answer.size != self._size:
                raise DataLoss(f"{answer.request.shown}: is {answer.size} bytes, its descriptor says {self._size}")
            return Part(answer, 0, self._size, whole=True)
        if answer.status == 416:
            raise WrongRange(str(await failure(answer)))
        if answer.status == 404:
            await answer.drain()
            raise NotFound(f"content at {redact(answer.request.url)}")
        raise await failure(answer)

    def _ranged(self, answer: Answer, start: int, end: int) -> Part:
        text = answer.header("Content-Range")
        found = ContentRange.parse(text)
        if found is None or (found.start, found.end) != (start, end) or found.total not in (None, self._size):
            raise WrongRange(
                f"{answer.request.shown}: Content-Range {printable(text, 100)!r},"
                f" asked for bytes {start} to {end - 1} of {self._size}"
            )
        if answer.size is not None and answer.size != end - start:
            raise WrongRange(f"{answer.request.shown}: {answer.size} bytes for the {end - start} that were asked for")
        return Part(answer, start, end)


class Part:
    """An open answer with the bytes from `start` up to and without `end`; `whole` if the range was ignored."""

    def __init__(self, answer: Answer, start: int, end: int, *, whole: bool = False) -> None:
        self._answer = answer
        self.start = start
        self.end = end
        self.whole = whole

    async def chunks(self, start: int) -> AsyncIterator[bytes]:
        """The bytes from `start` on: those before it come and are dropped.

        Raises Broken where the body ends too early, DataLoss where it goes on after its end.
        """
        position = self.start
        async for chunk in self._answer.chunks():
            following = position + len(chunk)
            if following > self.end:
                raise DataLoss(f"{self._answer.request.shown}: more than the {self.end} bytes of its descriptor came")
            if following > start:
                yield chunk if position >= start else chunk[start - position :]
            position = following
        if position != self.end:
            raise Broken.verbatim(f"{self._answer.request.shown}: the body ended after {position} of {self.end} bytes")
