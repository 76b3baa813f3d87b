"""Authorization towards one host: nothing until it asks, then what it asks for (RFC 9110, 11)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from orlop.core.registry import Credential, Credentials
from orlop.registry.challenges import Challenge, parse_challenges
from orlop.registry.failures import Denied
from orlop.registry.hosts import Host
from orlop.registry.redaction import printable
from orlop.registry.scopes import merge
from orlop.registry.tokens import Realm, Tokens, basic


class Authorizer:
    """What `host` gets to see in requests of one operation. Credentials are asked for once."""

    def __init__(self, host: Host, reference: str, credentials: Credentials | None, tokens: Tokens) -> None:
        self._host = host
        self._reference = reference
        self._credentials = credentials
        self._tokens = tokens
        self._challenge: Challenge | None = None
        self._scopes: tuple[str, ...] = ()
        self._credential: Credential | None = None
        self._asked = False
        self._lock = asyncio.Lock()

    async def header(self, scopes: Sequence[str], private: tuple[tuple[str, str], ...], host_url: str) -> str:
        """`Authorization` for a request that needs `scopes`; empty until the host has asked for one."""
        challenge = self._challenge
        if challenge is None:
            return ""
        if challenge.scheme == "basic":
            return basic(self._credential) if self._credential else ""
        realm = Realm(
            challenge.parameters["realm"], challenge.parameters.get("service", ""), host_url, private, self._host.tls
        )
        token = await self._tokens.get(realm, merge([*scopes, *self._scopes]), self._credential)
        return f"Bearer {token}"

    async def challenged(self, fields: Sequence[str], sent: str, tries: int) -> None:
        """The host has answered 401 to a request with the authorization `sent`, the `tries`th time for this request.

        Returns if another attempt may do. Raises Unauthenticated, naming what the host says, if not.
        """
        async with self._lock:
            challenge = self._choose(fields)
            if challenge.scheme == "bearer":
                if sent:
                    self._tokens.forget(sent.removeprefix("Bearer "))
                if tries > 2 or (sent and tries > 1 and challenge == self._challenge):
                    raise Denied.verbatim(f"{_said(challenge)}authorization failed")
                self._scopes = merge([*self._scopes, challenge.parameters.get("scope", "")])
            elif sent:
                raise Denied.verbatim(f"{_said(challenge)}authorization failed: the user name or password is wrong")
            if not self._asked:
                self._credential = await self._ask(fields)
                self._asked = True
            if challenge.scheme == "basic" and (self._credential is None or not self._credential.username):
                raise Denied.verbatim("no basic auth credentials")
            self._challenge = challenge

    async def _ask(self, fields: Sequence[str]) -> Credential | None:
        if self._credentials is None:
            return None
        names = [self._host.address]
        if self._host.is_server and self._host.namespace:
            names.append(self._host.namespace)  # people log in by the name that they know
        for name in names:
            credential = await self._credentials.of(name, self._reference, fields)
            if credential is not None and credential.secret:
                return credential
        return None

    def _choose(self, fields: Sequence[str]) -> Challenge:
        challenges = parse_challenges(fields)
        for challenge in challenges:
            if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                return challenge
        for challenge in challenges:
            if challenge.scheme == "basic":
                return challenge
        schemes = ", ".join(printable(challenge.scheme, 40) for challenge in challenges[:5]) or "none"
        raise Denied.verbatim(f"failed to find supported auth scheme (asked for: {schemes})")


def _said(challenge: Challenge) -> str:
    text = ": ".join(filter(None, (challenge.parameters.get(name) for name in ("error", "error_description"))))
    return f"server message: {printable(text, 300)}: " if text else ""
