"""Bearer tokens: asked of the server that a registry names, kept until shortly before they expire.

Two ways (distribution's token and OAuth2 documentation): a GET with basic authorization or none, and, where there is a
secret, first a POST of a form.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from orlop.core import clock
from orlop.core.registry import Credential
from orlop.errors import PermissionDenied, Unknown
from orlop.registry.failures import Broken, Denied, GivenUp, of_status
from orlop.registry.hosts import Tls
from orlop.registry.redaction import redact
from orlop.registry.retries import BROKEN, BUSY, Retries
from orlop.registry.settings import Settings
from orlop.registry.transport import Answer, Body, Request, Transport, closing, is_local, origin

_ANSWER_LIMIT = 1 << 20
_DEFAULT_SECONDS = 60
_LONGEST_SECONDS = 86_400
_CACHED = 1_000
_NO_FORM = frozenset({400, 401, 404, 405})
"""Answers to the form of servers that know only the other way: GCR and JFrog among others."""


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class Realm:
    """A token server, as a host that asks for its tokens names it."""

    url: str
    service: str
    host_url: str
    """Of the registry that named it."""
    private: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """The registry's own headers: the token server gets them where it is the same server."""
    tls: Tls = field(default=Tls())

    def check(self) -> None:
        """Raises PermissionDenied for a realm that a registry cannot mean: credentials would go there."""
        scheme, host, _ = origin(self.url)
        own = origin(self.host_url)
        if scheme not in ("http", "https") or not host:
            raise PermissionDenied.verbatim(f"token server {redact(self.url)}: no http or https URL")
        if scheme == "http" and own[0] == "https" and not (is_local(host) and is_local(own[1])):
            raise PermissionDenied.verbatim(f"token server {redact(self.url)}: http, while the registry is https")
        if is_local(host) and not is_local(own[1]):
            raise PermissionDenied.verbatim(
                f"token server {redact(self.url)}: on this machine or link, the registry is not"
            )


class Tokens:
    """The tokens of all operations, by who asked for them where and for what."""

    def __init__(self, transport: Transport, settings: Settings) -> None:
        self._transport = transport
        self._settings = settings
        self._kept: dict[tuple[str, ...], tuple[str, float]] = {}
        self._asking: dict[tuple[str, ...], asyncio.Lock] = {}

    async def get(self, realm: Realm, scopes: tuple[str, ...], credential: Credential | None) -> str:
        """A token that is valid for some time yet; those who want the same one share one question."""
        key = _key(realm, scopes, credential)
        lock = self._asking.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                token, until = self._kept.get(key, ("", 0.0))
                if not token or until <= clock.monotonic():
                    token, seconds = await self._ask(realm, scopes, credential)
                    self._keep(key, token, clock.monotonic() + seconds - min(10.0, seconds / 4))
                return token
        finally:
            if not lock.locked():
                self._asking.pop(key, None)

    def forget(self, token: str) -> None:
        """The registry did not take `token`."""
        for key in [key for key, (kept, _) in self._kept.items() if kept == token]:
            del self._kept[key]

    def _keep(self, key: tuple[str, ...], token: str, until: float) -> None:
        if len(self._kept) >= _CACHED:
            now = clock.monotonic()
            self._kept = {key: kept for key, kept in self._kept.items() if kept[1] > now}
            if len(self._kept) >= _CACHED:
                self._kept.clear()
        self._kept[key] = (token, until)

    async def _ask(self, realm: Realm, scopes: tuple[str, ...], credential: Credential | None) -> tuple[str, float]:
        realm.check()
        if credential is not None and credential.secret:
            status, body, request, headers = await self._send(_form(realm, scopes, credential))
            if status < 300:
                return _read(request, body)
            if status not in _NO_FORM or (status == 405 and not credential.username):
                raise _refused(status, request, body, headers)
        status, body, request, headers = await self._send(_query(realm, scopes, credential))
        if status >= 300:
            raise _refused(status, request, body, headers)
        return _read(request, body)

    async def _send(self, request: Request) -> tuple[int, bytes, Request, Mapping[str, str]]:
        retries = Retries(self._settings)
        while True:
            try:
                async with closing(await self._transport.send(request)) as answer:
                    body = await answer.read(_ANSWER_LIMIT)
            except Broken as error:
                if not retries.another():
                    raise GivenUp.verbatim(str(error)) from None
                await retries.wait()
                continue
            if answer.status not in BUSY | BROKEN or not retries.another():
                return answer.status, body, request, _headers(answer)
            await retries.wait(answer.header("Retry-After"))


def _form(realm: Realm, scopes: tuple[str, ...], credential: Credential) -> Request:
    fields = {"service": realm.service, "client_id": "containerd-client"}
    if scopes:
        fields["scope"] = " ".join(scopes)
    if credential.username:
        fields |= {"grant_type": "password", "username": credential.username, "password": credential.secret}
    else:
        fields |= {"grant_type": "refresh_token", "refresh_token": credential.secret}
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8", "Accept": "application/json"}
    body = Body.of(urlencode(fields).encode())
    # A redirect would take the secret along.
    return Request("POST", realm.url, headers, _private(realm), body, realm.tls, follow=False)


def _query(realm: Realm, scopes: tuple[str, ...], credential: Credential | None) -> Request:
    parts = urlsplit(realm.url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    query += [("service", realm.service)] if realm.service else []
    query += [("scope", scope) for scope in scopes]
    url = urlunsplit(parts._replace(query=urlencode(query), fragment=""))
    private = _private(realm)
    if credential is not None and credential.secret:
        private += (("Authorization", basic(credential)),)
    return Request("GET", url, {"Accept": "application/json"}, private, tls=realm.tls)


def _private(realm: Realm) -> tuple[tuple[str, str], ...]:
    return realm.private if origin(realm.url) == origin(realm.host_url) else ()


def basic(credential: Credential) -> str:
    """The `Authorization` of a user and a secret (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{credential.username}:{credential.secret}".encode()).decode()


def _read(request: Request, body: bytes) -> tuple[str, float]:
    try:
        answer = msgspec.json.decode(body, type=_Token)
    except (msgspec.DecodeError, RecursionError):
        raise Unknown(f"{request.shown}: the answer of the token server is no JSON object with a token") from None
    token = answer.access_token or answer.token
    if not token:
        raise Unknown(f"{request.shown}: authorization server did not include a token in the response")
    if not (token.isascii() and token.isprintable()):
        raise Unknown(f"{request.shown}: the token cannot be sent: it has other characters than a header may have")
    seconds = answer.expires_in if answer.expires_in is not None and answer.expires_in > 0 else _DEFAULT_SECONDS
    return token, min(seconds, _LONGEST_SECONDS)


def _refused(status: int, request: Request, body: bytes, headers: Mapping[str, str]) -> Exception:
    error = of_status(status, request.method, redact(request.url), body, headers)
    prefix = "failed to fetch oauth token" if request.method == "POST" else "failed to fetch anonymous token"
    if any(name == "Authorization" for name, _ in request.private):
        prefix = "failed to fetch token"
    if status in (401, 403):
        return Denied.verbatim(f"{prefix}: {error}: authorization failed")
    return error.within(prefix)


def _headers(answer: Answer) -> Mapping[str, str]:
    return answer.response.headers


def _key(realm: Realm, scopes: tuple[str, ...], credential: Credential | None) -> tuple[str, ...]:
    secret = ""
    if credential is not None:
        secret = hashlib.sha256(f"{credential.username}\0{credential.secret}".encode()).hexdigest()
    return (realm.host_url, realm.url, realm.service, secret, *scopes)
