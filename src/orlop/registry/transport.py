"""HTTP to registries: one pool of connections for the daemon, redirects, and failures in our own words.

What only the registry itself may see (authorization, an administrator's or client's own headers, a client certificate)
never goes to another scheme, host or port. Cookies are not kept.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from urllib.parse import urljoin, urlsplit

import aiohttp
import aiohttp.connector
from yarl import URL

from orlop.core import clock
from orlop.errors import FailedPrecondition, InvalidArgument, OrlopError
from orlop.registry import tls
from orlop.registry.failures import BODY_LIMIT, Broken, Unreachable
from orlop.registry.hosts import Tls, is_loopback
from orlop.registry.proxies import Proxies
from orlop.registry.redaction import printable, redact
from orlop.registry.settings import Settings

# aiohttp has read the system's authorities for a context that we have no use for: ours are of `tls`. This one trusts
# nobody, and takes 2 MB less.
aiohttp.connector._SSL_CONTEXT_VERIFIED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 10
_IDLE_SECONDS = 30
_BUFFER = 512 << 10
"""Bytes a connection reads ahead; twice as many stop it until they are taken."""


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent: `open` begins anew at each attempt."""

    size: int
    open: Callable[[], AsyncIterator[bytes]]

    @classmethod
    def of(cls, data: bytes) -> Body:
        async def once() -> AsyncIterator[bytes]:
            yield data

        return cls(len(data), once)


@dataclass(frozen=True, slots=True)
class Request:
    """`private` headers and the client certificate of `tls` go to the host of `url` only."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    private: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    body: Body | None = None
    tls: Tls = field(default=Tls())
    dial_timeout: float | None = None
    follow: bool = True

    @property
    def shown(self) -> str:
        return f"{self.method} {redact(self.url)}"


@dataclass(slots=True)
class Answer:
    """An answer whose body has not been read; `request` is the last one, after redirects."""

    request: Request
    response: aiohttp.ClientResponse
    asked: Request

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def is_own(self) -> bool:
        """Whether the host that was asked has answered itself."""
        return origin(self.request.url) == origin(self.asked.url)

    def header(self, name: str) -> str:
        return self.response.headers.get(name, "")

    def all(self, name: str) -> list[str]:
        return list(self.response.headers.getall(name, ()))

    @property
    def size(self) -> int | None:
        """The length of the body as far as it is said."""
        return self.response.content_length

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises Broken where the connection is lost or stalls."""
        content = self.response.content
        try:
            while chunk := await content.readany():
                yield chunk
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise self._broken(error) from None

    async def read(self, limit: int) -> bytes:
        """At most `limit` bytes of the body."""
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks():
            parts.append(chunk)
            size += len(chunk)
            if size >= limit:
                break
        return b"".join(parts)[:limit]

    async def drain(self) -> bytes:
        """Reads what an error says and gives the connection back."""
        try:
            return await self.read(BODY_LIMIT)
        except OrlopError:
            return b""
        finally:
            self.close()

    def close(self) -> None:
        self.response.close()

    def _broken(self, error: BaseException) -> Broken:
        return Broken.verbatim(f"{self.request.shown}: {_why(error)}")


class _Sending:
    """A body on its way: given up where the server takes nothing more of it. (Reading has a limit of aiohttp's own.)"""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._moved_at = clock.monotonic()
        self._ended = False

    async def pieces(self) -> AsyncIterator[bytes]:
        async for piece in self._body.open():
            yield piece
            self._moved_at = clock.monotonic()
        self._ended = True

    async def watch(self, begun: Awaitable[aiohttp.ClientResponse], limit: float) -> aiohttp.ClientResponse:
        task = asyncio.ensure_future(begun)
        try:
            while not (await asyncio.wait([task], timeout=limit))[0]:
                if not self._ended and clock.monotonic() - self._moved_at >= limit:
                    raise TimeoutError
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])


class Transport:
    """Sends requests. Sessions begin with the first request; `close` ends all connections."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._contexts = tls.Contexts()
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, request: Request) -> Answer:
        """The answer to `request` after at most ten redirects; close it.

        Raises Unreachable where no connection comes about, Broken where it is lost, FailedPrecondition where the
        server cannot be trusted or redirects where it must not.
        """
        asked = request
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._once(request)
            location = response.headers.get("Location", "")
            if not (request.follow and response.status in _REDIRECTS and location):
                return Answer(request, response, asked)
            response.close()
            request = redirected(request, response.status, location)
        raise FailedPrecondition.verbatim(f"{asked.shown}: stopped after {_MAX_REDIRECTS} redirects")

    async def _once(self, request: Request) -> aiohttp.ClientResponse:
        settings = self._settings
        parts = urlsplit(request.url)
        proxy = Proxies.of(os.environ).of_url(parts.scheme, parts.netloc) or None
        secure = "https" in (parts.scheme, urlsplit(proxy or "").scheme)
        headers = {"User-Agent": settings.user_agent, "Accept-Encoding": "identity", **request.headers}
        headers.update(request.private)
        if request.body is not None:
            headers["Content-Length"] = str(request.body.size)
        sending = _Sending(request.body) if request.body is not None and request.body.size else None
        try:
            begun = self._opened().request(
                request.method,
                URL(request.url, encoded=True),
                headers=headers,
                data=sending.pieces() if sending else None,
                allow_redirects=False,
                ssl=self._contexts.of(request.tls) if secure else True,
                proxy=proxy,
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    sock_connect=request.dial_timeout or settings.dial_timeout,
                    sock_read=settings.stall_timeout,
                ),
            )
            return await (sending.watch(begun, settings.stall_timeout) if sending else begun)
        except aiohttp.InvalidURL:
            raise InvalidArgument.verbatim(f"{request.shown}: no valid URL") from None
        except ssl.SSLError as error:
            raise _untrusted(request, error) from None
        except aiohttp.ClientConnectorError as error:
            raise Unreachable.verbatim(f"{request.shown}: {_why(error)}") from None
        except aiohttp.ConnectionTimeoutError:
            raise Unreachable.verbatim(f"{request.shown}: no connection within the time limit") from None
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            if refusal := tls.refusal(error, request.tls):
                raise FailedPrecondition.verbatim(f"{request.shown}: {refusal}") from None
            raise Broken.verbatim(f"{request.shown}: {_why(error)}") from None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=_BUFFER,
                skip_auto_headers=("Accept", "Content-Type"),
            )
        return self._session


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def redirected(request: Request, status: int, location: str) -> Request:
    """`request` as it goes to where `location` points. Raises FailedPrecondition where it must not go there."""
    try:
        url = urljoin(request.url, location)
        target = origin(url)
    except ValueError:
        raise FailedPrecondition.verbatim(
            f"{request.shown}: redirect to {printable(location)!r}, no valid URL"
        ) from None
    scheme, host, _ = target
    if scheme not in ("http", "https") or not host:
        raise FailedPrecondition.verbatim(f"{request.shown}: redirect to {redact(url)}, which is no http or https URL")
    if scheme == "http" and request.url.startswith("https:"):
        raise FailedPrecondition.verbatim(f"{request.shown}: redirect from https to {redact(url)} refused")
    if status == 303 and request.method != "HEAD":
        request = replace(request, method="GET", body=None)
    if target == origin(request.url):
        return replace(request, url=url)
    if is_local(host) and not is_local(origin(request.url)[1]):
        raise FailedPrecondition.verbatim(
            f"{request.shown}: redirect to {redact(url)}, on this machine or link, refused"
        )
    return replace(request, url=url, private=(), tls=replace(request.tls, client=()))


def is_local(host: str) -> bool:
    """Whether `host` is this machine or of the link's own addresses, where no registry of another machine points."""
    return is_loopback(f"[{host}]" if ":" in host else host) or host.startswith(("169.254.", "fe80:", "fe80%"))


def _untrusted(request: Request, error: ssl.SSLError) -> OrlopError:
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    kind = _SpeaksHttp if tls.is_plain_http(cause) else FailedPrecondition
    return kind.verbatim(f"{request.shown}: {tls.reason(cause)}")


class _SpeaksHttp(FailedPrecondition):
    """The server was asked in TLS and answered in something else."""


def speaks_http(error: OrlopError) -> bool:
    return isinstance(error, _SpeaksHttp)


def header_values(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Several values of one name as the one field that they are (RFC 9110, 5.3)."""
    merged: dict[str, tuple[str, str]] = {}
    for name, value in pairs:
        known = merged.get(name.lower())
        merged[name.lower()] = (known[0], f"{known[1]}, {value}") if known else (name, value)
    return tuple(merged.values())


def _why(error: BaseException) -> str:
    if isinstance(error, aiohttp.ServerTimeoutError | asyncio.TimeoutError):
        return "no byte went or came within the time limit"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"no address for {error.host}: {error.os_error.strerror or error.os_error}"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"proxy: {error.status} {printable(error.message, 200)}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{error.host}:{error.port}: {_system(error.os_error)}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection without an answer"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the body ended before its length"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"no valid HTTP answer: {printable(error.message, 200)}"
    if isinstance(error, OSError):
        return _system(error)
    return printable(str(error), 200) or type(error).__name__


def _system(error: OSError) -> str:
    # asyncio puts words of its own, with the address, where the system's are.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or printable(str(error), 200)


@asynccontextmanager
async def closing(answer: Answer) -> AsyncIterator[Answer]:
    try:
        yield answer
    finally:
        answer.close()
