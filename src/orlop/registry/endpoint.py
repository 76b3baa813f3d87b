"""One host as one operation speaks to it: its headers, authorization, and the policy of trying again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import urlencode

from orlop.core.reference import Reference
from orlop.core.registry import Credentials, RegistryOptions
from orlop.errors import OrlopError
from orlop.registry.authorizer import Authorizer
from orlop.registry.failures import Broken, GivenUp, Unreachable, of_status
from orlop.registry.hosts import Host
from orlop.registry.redaction import redact
from orlop.registry.retries import BROKEN, BUSY, Retries
from orlop.registry.scopes import repository_scope
from orlop.registry.settings import Settings
from orlop.registry.tokens import Tokens
from orlop.registry.transport import Answer, Body, Request, Transport, header_values, origin, speaks_http


class Endpoint:
    """A host, for requests about one repository."""

    def __init__(
        self,
        host: Host,
        reference: Reference,
        options: RegistryOptions,
        credentials: Credentials | None,
        transport: Transport,
        tokens: Tokens,
        settings: Settings,
    ) -> None:
        self._host = host
        self._reference = reference
        self._transport = transport
        self._settings = settings
        self._log = options.log
        self._private = header_values([*options.headers.items(), *host.headers])
        self._authorizer = Authorizer(host, str(reference), credentials, tokens)

    @property
    def host(self) -> Host:
        return self._host

    def url(self, path: str, query: Sequence[tuple[str, str]] = ()) -> str:
        """The URL of `path` in the repository."""
        return self.root_url(f"{self._reference.path}/{path}", query)

    def root_url(self, path: str, query: Sequence[tuple[str, str]] = ()) -> str:
        """The URL of `path` below the API's root."""
        pairs = [*query, ("ns", self._host.namespace)] if self._host.namespace else [*query]
        return f"{self._host.url}/{path}" + (f"?{urlencode(pairs)}" if pairs else "")

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        scopes: Sequence[str] = (),
        last: bool = True,
        again: bool = True,
    ) -> AsyncIterator[Answer]:
        """The answer, of whatever status, once trying again would not help.

        `scopes` are what a token must permit, by default to pull. Without `last`, another host can do the same: what is
        broken here is not tried again. Without `again` nothing is that the host may have begun to do.
        """
        scopes = scopes or (repository_scope(self._reference.path, "pull"),)
        answer = await self._open(Request(method, url, headers or {}, body=body), scopes, last, again)
        try:
            yield answer
        finally:
            answer.close()

    async def _open(self, request: Request, scopes: Sequence[str], last: bool, again: bool) -> Answer:
        retries = Retries(self._settings)
        refusals = 0
        while True:
            request = replace(request, url=self._current(request.url))
            try:
                answer, sent = await self._send(request, scopes)
            except Broken as error:
                if not (last and again and retries.another()):
                    raise GivenUp.verbatim(str(error)) from None
                await retries.wait()
                continue
            if answer.status == 401 and self._is_own(answer.request) and answer.is_own and refusals < 3:
                refusals += 1
                fields = answer.all("WWW-Authenticate")
                said = await answer.drain()
                try:
                    await self._authorizer.challenged(fields, sent, refusals)
                except OrlopError as error:
                    raise self._denied(request, answer, said, error) from None
            elif answer.status in BUSY or (answer.status in BROKEN and last and again):
                if not retries.another():
                    return answer
                after = answer.header("Retry-After")
                await answer.drain()
                await retries.wait(after)
            else:
                return answer

    async def _send(self, request: Request, scopes: Sequence[str]) -> tuple[Answer, str]:
        """The answer, and the authorization that the request had."""
        host = self._host  # another request may find out meanwhile that it speaks http
        request = replace(request, dial_timeout=host.dial_timeout)
        if not self._is_own(request):
            return await self._logged(request), ""
        try:
            sent = await self._authorizer.header(scopes, self._private, self._host.url)
        except OrlopError as error:  # of a token server, which is mostly another host
            raise error.within(request.shown) from error
        private = (*self._private, ("Authorization", sent)) if sent else self._private
        try:
            return await self._logged(replace(request, private=private, tls=host.tls)), sent
        except OrlopError as error:
            if not self._falls_back(host, error):
                raise
        # The handshake failed before anything was sent. From now on it is http, without TLS first.
        self._host = replace(self._host, scheme="http", http_fallback=False)
        return await self._logged(replace(request, url=self._current(request.url), private=private)), sent

    def _falls_back(self, host: Host, error: OrlopError) -> bool:
        if not host.http_fallback:
            return False
        return speaks_http(error) or (isinstance(error, Unreachable) and not self._has_port)

    def _is_own(self, request: Request) -> bool:
        return origin(request.url) == origin(self._host.url)

    def _current(self, url: str) -> str:
        """`url` with the scheme that the host turned out to have."""
        secure = f"https://{self._host.address}/"
        if self._host.scheme == "http" and url.startswith(secure):
            return f"http://{self._host.address}/{url.removeprefix(secure)}"
        return url

    @property
    def _has_port(self) -> bool:
        return ":" in self._host.address.rpartition("]")[2]

    async def _logged(self, request: Request) -> Answer:
        if self._log is None:
            return await self._transport.send(request)
        self._log(f"do request: {request.shown}")
        try:
            answer = await self._transport.send(request)
        except OrlopError as error:
            self._log(f"request failed: {error}")
            raise
        self._log(f"fetch response received: {answer.request.shown}: {answer.status}")
        return answer

    def _denied(self, request: Request, answer: Answer, said: bytes, why: OrlopError) -> OrlopError:
        error = of_status(answer.status, request.method, redact(request.url), said, answer.response.headers)
        return type(why).verbatim(f"{error}: {why}")


async def failure(answer: Answer) -> OrlopError:
    """The error that `answer` stands for, with what its body says."""
    said = b"" if answer.request.method == "HEAD" else await answer.drain()
    return of_status(answer.status, answer.request.method, redact(answer.request.url), said, answer.response.headers)
