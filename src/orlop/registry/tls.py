"""TLS towards registries: contexts of an administrator's files, and plain words for what a handshake ends with."""

from __future__ import annotations

import os
import ssl

from orlop.errors import FailedPrecondition
from orlop.registry.hosts import Tls

_EXPIRED, _NOT_YET, _SELF_SIGNED, _SELF_SIGNED_CHAIN, _NO_ISSUER, _NO_LEAF, _OTHER_NAME, _OTHER_ADDRESS = (
    10,
    9,
    18,
    19,
    20,
    21,
    62,
    64,
)
_REASONS = {
    _EXPIRED: "its certificate has expired",
    _NOT_YET: "its certificate is not valid yet",
    _OTHER_NAME: "its certificate is for another name",
    _OTHER_ADDRESS: "its certificate is for another address",
    **dict.fromkeys(
        (_SELF_SIGNED, _SELF_SIGNED_CHAIN, _NO_ISSUER, _NO_LEAF),
        "its certificate is signed by an authority that is not trusted here (`ca` in hosts.toml adds one)",
    ),
}


class Contexts:
    """TLS contexts, made once for each setting and again when a file of it has changed."""

    def __init__(self) -> None:
        self._made: dict[tuple[Tls, tuple[int, ...]], ssl.SSLContext] = {}

    def of(self, tls: Tls) -> ssl.SSLContext:
        """Raises FailedPrecondition, with the file, where a file cannot be read or has no certificate or key."""
        key = (tls, tuple(_changed_at(name) for name in (*tls.ca, *sum(tls.client, ())) if name))
        context = self._made.get(key)
        if context is None:
            if len(self._made) > 100:
                self._made.clear()
            context = self._made[key] = _context(tls)
        return context


_REFUSALS = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "ALERT_UNKNOWN_CA", "CERTIFICATE_EXPIRED", "ACCESS_DENIED")


def refusal(error: BaseException | None, tls: Tls) -> str:
    """Why the other side takes no request of ours, where it is for our certificate; empty for other reasons.

    It may say so after the handshake has ended on this side (RFC 8446, 4.4.2.4).
    """
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    if not any(word in str(getattr(error, "reason", "")) for word in _REFUSALS):
        return ""
    if tls.client:
        return "it does not take the certificate that it is shown (`client` in hosts.toml)"
    return "it wants to be shown a certificate (`client` in hosts.toml names one)"


def reason(error: BaseException) -> str:
    """Why a handshake failed, for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        plain = _REASONS.get(error.verify_code)
        detail = str(error.verify_message)
        return f"{plain} ({detail})" if plain else f"its certificate is not valid: {detail}"
    if is_plain_http(error):
        return "it speaks http, not https"
    return f"TLS handshake: {getattr(error, 'reason', None) or error}"


def is_plain_http(error: BaseException) -> bool:
    """Whether the other side answered a handshake in something that is no TLS, as servers of plain HTTP do."""
    text = str(getattr(error, "reason", "") or error)
    return isinstance(error, ssl.SSLError) and any(
        word in text for word in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL")
    )


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for file in tls.ca:
        try:
            context.load_verify_locations(cafile=file)
        except (OSError, ssl.SSLError) as error:
            raise FailedPrecondition(f"{file}: no certificates can be read: {_said(error)}") from None
    for certificate, key in tls.client:
        try:
            context.load_cert_chain(certificate, key or None)
        except (OSError, ssl.SSLError) as error:
            raise FailedPrecondition(
                f"{certificate}: no certificate with its key can be read: {_said(error)}"
            ) from None
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _said(error: OSError) -> str:
    return error.strerror or str(getattr(error, "reason", "") or error)


def _changed_at(file: str) -> int:
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return 0
