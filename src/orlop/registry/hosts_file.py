"""`hosts.toml` and the older directories of certificates: what an administrator says of a registry's hosts.

A file that cannot be understood fails the operation. containerd goes on without it, and then asks other hosts, with
other credentials and certificates, than the administrator meant.
"""

from __future__ import annotations

import difflib
import logging
import os
import posixpath
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from orlop.core import duration
from orlop.core.reference import is_host, split_port
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.registry.hosts import Capability, Host, Tls, own_host, ready

_LIMIT = 1 << 20
_LOG = logging.getLogger(__name__)
_HOST_KEYS = ("capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout")
_ROOT_KEYS = (*_HOST_KEYS, "server", "host")
_CAPABILITIES = {str(item.name).lower(): item for item in Capability if item.name}
_warned: set[str] = set()


def hosts_of(reference_host: str, directories: Sequence[str], default_scheme: str = "") -> list[Host]:
    """The hosts for references to `reference_host`, in the order in which they are tried.

    Reads files at each call. Raises InvalidArgument, with file and key, for a file that is wrong, FailedPrecondition
    where one cannot be read.
    """
    directory = _directory_of(reference_host, directories)
    hosts = (
        _read(directory, reference_host, default_scheme) if directory else [own_host(reference_host, default_scheme)]
    )
    return ready(hosts, reference_host)


def _directory_of(host: str, directories: Sequence[str]) -> str:
    if not is_host(host):
        raise InvalidArgument(f"host {host!r}: no host name")
    name, port = split_port(host)
    candidates = [f"{name}_{port}_", host, "_default"] if port else [host, "_default"]
    for directory in directories:
        for candidate in candidates:
            path = os.path.join(directory, candidate)
            if os.path.isdir(path):
                return path
    return ""


def _read(directory: str, reference_host: str, default_scheme: str) -> list[Host]:
    path = os.path.join(directory, "hosts.toml")
    try:
        with open(path, "rb") as file:
            data = file.read(_LIMIT + 1)
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise FailedPrecondition(f"{path}: {error.strerror}") from None
    own = own_host(reference_host, default_scheme)
    if not data.strip():
        return [_with_tls(own, _certificates(directory))]
    if len(data) > _LIMIT:
        raise InvalidArgument(f"{path}: more than {_LIMIT} bytes")
    try:
        document = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"{path}: {error}") from None
    return parse(document, path, own)


def parse(document: Mapping[str, Any], path: str, own: Host) -> list[Host]:
    """The hosts that the file at `path` names; `own` is the reference's host, for a file that names no server."""
    _warn_unknown(document, _ROOT_KEYS, path, "")
    table = document.get("host", {})
    if not isinstance(table, dict):
        raise InvalidArgument(f'{path}: host must be a table, as [host."https://mirror.example"]')
    hosts = []
    for url, section in table.items():
        where = f'host."{url}"'
        if not isinstance(section, dict):
            raise InvalidArgument(f"{path}: {where} must be a table")
        _warn_unknown(section, _HOST_KEYS, path, where)
        hosts.append(_Section(section, path, where).host(url))
    root = _Section(document, path, "")
    server = root.text("server")
    if server:
        own = replace(root.host(server), is_server=True)
        return [*(replace(host, is_server=host.origin == own.origin) for host in hosts), own]
    return [*hosts, root.applied_to(own)]


class _Section:
    """One table of the file; its readers raise InvalidArgument, with file and key, for what a key cannot be."""

    def __init__(self, values: Mapping[str, Any], path: str, where: str) -> None:
        self._values = values
        self._path = path
        self._where = where
        self._base = os.path.dirname(path)

    def host(self, url: str) -> Host:
        try:
            parts = urlsplit(url if url.startswith("http") else f"https://{url}")
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not is_host(parts.netloc):
            raise InvalidArgument(f"{self._path}: {url!r} is no http or https URL of a host")
        return self.applied_to(Host(parts.scheme, parts.netloc, self._api_path(parts.path)), override=True)

    def applied_to(self, host: Host, override: bool = False) -> Host:
        """`host` with what the section says. The reference's own host keeps all its capabilities and its path."""
        capabilities = self._capabilities()
        tls = Tls(self._files("ca"), self._pairs(), self._flag("skip_verify"))
        return Host(
            host.scheme,
            host.address,
            host.path,
            capabilities if override else Capability.ALL,
            _merged(host.tls, tls),
            self._headers(),
            self._dial_timeout(),
        )

    def text(self, key: str) -> str:
        value = self._values.get(key, "")
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def _api_path(self, path: str) -> str:
        override = self._flag("override_path")
        path = posixpath.normpath(path).replace("//", "/") if path else ""
        path = "" if path in ("/", ".") else path
        return path if override or path.endswith("/v2") else f"{path}/v2"

    def _capabilities(self) -> Capability:
        value = self._values.get("capabilities", [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong("capabilities", "a list of strings")
        found = Capability(0)
        for item in value:
            capability = _CAPABILITIES.get(item.lower())
            if capability is None:
                raise self._wrong("capabilities", f"of {', '.join(_CAPABILITIES)}; {item!r} is none")
            found |= capability
        return found or Capability.ALL

    def _files(self, key: str) -> tuple[str, ...]:
        value = self._values.get(key, [])
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise self._wrong(key, "a file name or a list of them")
        return tuple(self._absolute(item) for item in items)

    def _pairs(self) -> tuple[tuple[str, str], ...]:
        value = self._values.get("client", [])
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list):
            raise self._wrong("client", "a file name, a list of them, or a list of pairs of certificate and key")
        return tuple(self._pair(item) for item in items)

    def _pair(self, item: object) -> tuple[str, str]:
        if isinstance(item, str):
            return self._absolute(item), ""
        if isinstance(item, list) and len(item) == 2 and all(isinstance(part, str) for part in item):
            certificate, key = item
            return self._absolute(certificate), self._absolute(key) if key else ""
        raise self._wrong("client", f"of file names and pairs of them; {item!r} is neither")

    def _headers(self) -> tuple[tuple[str, str], ...]:
        value = self._values.get("header", {})
        if not isinstance(value, dict):
            raise self._wrong("header", "a table")
        found = []
        for name, texts in value.items():
            for text in [texts] if isinstance(texts, str) else texts if isinstance(texts, list) else [None]:
                if not isinstance(text, str) or not is_header(name, text):
                    raise self._wrong(f"header.{name}", "a string without line breaks, or a list of such")
                found.append((name, text))
        return tuple(found)

    def _dial_timeout(self) -> float | None:
        text = self.text("dial_timeout")
        if not text:
            return None
        try:
            nanoseconds = duration.parse(text)
        except InvalidArgument:
            nanoseconds = -1
        if nanoseconds < 0:
            raise self._wrong("dial_timeout", f'a duration as "30s"; {text!r} is none')
        return nanoseconds / 1e9 or None

    def _flag(self, key: str) -> bool | None:
        value = self._values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def _absolute(self, file: str) -> str:
        return os.path.join(self._base, file)

    def _wrong(self, key: str, expected: str) -> InvalidArgument:
        name = f"{self._where}.{key}" if self._where else key
        return InvalidArgument(f"{self._path}: {name} must be {expected}")


def is_header(name: str, value: str) -> bool:
    """Whether the two can be sent as they are (RFC 9110, 5.1 and 5.5)."""
    token = name.isascii() and name and all(c.isalnum() or c in "!#$%&'*+-.^_`|~" for c in name)
    return bool(token) and all(c == "\t" or (c.isprintable() and ord(c) < 256) for c in value)


def _merged(own: Tls, said: Tls) -> Tls:
    return Tls(
        said.ca or own.ca, said.client or own.client, own.skip_verify if said.skip_verify is None else said.skip_verify
    )


def _with_tls(host: Host, tls: Tls) -> Host:
    return Host(host.scheme, host.address, host.path, host.capabilities, _merged(host.tls, tls))


def _certificates(directory: str) -> Tls:
    """Docker's older way: `*.crt` are trusted, `*.cert` with `*.key` are shown."""
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise FailedPrecondition(f"{directory}: {error.strerror}") from None
    ca = tuple(os.path.join(directory, name) for name in names if name.endswith(".crt"))
    pairs = []
    for name in names:
        if name.endswith(".cert"):
            key = f"{name.removesuffix('.cert')}.key"
            pairs.append((os.path.join(directory, name), os.path.join(directory, key) if key in names else ""))
    return Tls(ca, tuple(pairs))


def _warn_unknown(section: Mapping[str, Any], known: Sequence[str], path: str, where: str) -> None:
    for key in section:
        if key in known:
            continue
        near = difflib.get_close_matches(key, known, 1)
        name = f"{where}.{key}" if where else key
        text = f"{path}: unknown key {name}" + (f" (did you mean {near[0]}?)" if near else "")
        # Files are read at each use; one telling is enough.
        if text not in _warned and len(_warned) < 1000:
            _warned.add(text)
            _LOG.warning(text)
