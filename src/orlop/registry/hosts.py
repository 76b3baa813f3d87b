"""Hosts: where the content of a reference may be asked for, in which order, and how each is to be spoken to.

Rules of containerd's `hosts.toml` (docs/hosts.md there): the file's hosts in its order, then its server, else the
reference's own host.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Flag, auto

from orlop.core.reference import split_port

DOCKER = "docker.io"
DOCKER_SERVER = "registry-1.docker.io"


class Capability(Flag):
    PULL = auto()
    RESOLVE = auto()
    PUSH = auto()
    REFERRERS = auto()
    ALL = PULL | RESOLVE | PUSH | REFERRERS


@dataclass(frozen=True, slots=True)
class Tls:
    """What is trusted beside the system's certificates, and what we show of ourselves; all are files."""

    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()
    """Certificate and key; an empty key is in the certificate's file."""
    skip_verify: bool | None = None

    @property
    def is_set(self) -> bool:
        return bool(self.ca or self.client or self.skip_verify is not None)


@dataclass(frozen=True, slots=True)
class Host:
    """A server with the registry's API below `url`."""

    scheme: str
    address: str
    """Name or address, with the port where it is not the scheme's."""
    path: str = "/v2"
    capabilities: Capability = Capability.ALL
    tls: Tls = field(default=Tls())
    headers: tuple[tuple[str, str], ...] = ()
    dial_timeout: float | None = None
    namespace: str = ""
    """The reference's host, for a server that stands in for it (`ns=`)."""
    is_server: bool = False
    """It is the reference's own registry under another name, and may see what is kept for that one's name."""
    http_fallback: bool = False
    """https is tried first, and http where the server speaks only that."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}{self.path}"

    @property
    def origin(self) -> tuple[str, str]:
        return self.scheme, self.address

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.address)


def is_loopback(address: str) -> bool:
    """Whether `address`, with or without port, is this machine as far as its name says."""
    name = split_port(address)[0].strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def own_host(host: str, default_scheme: str) -> Host:
    """The host of the reference itself."""
    if host == DOCKER:
        return Host("https", DOCKER_SERVER)
    if default_scheme:
        return Host(default_scheme, host)
    port = split_port(host)[1]
    if not is_loopback(host):
        return Host("https", host)
    # Nobody listens in between on loopback: certificates there are mostly self-made, and many registries have none.
    scheme = "https" if port in ("", "443") else "http"
    return Host(scheme, host, tls=Tls() if port == "80" else Tls(skip_verify=True))


def ready(hosts: Sequence[Host], reference_host: str) -> list[Host]:
    """The hosts with what follows from their settings: `ns=` for stand-ins, https first where TLS is set."""
    return [_ready(host, reference_host) for host in hosts]


def _ready(host: Host, reference_host: str) -> Host:
    own = host.address in (reference_host, DOCKER_SERVER if reference_host == DOCKER else reference_host)
    host = replace(host, namespace="" if own else reference_host)
    if host.scheme == "http" and host.tls.is_set and split_port(host.address)[1] != "80":
        return replace(host, scheme="https", http_fallback=True)
    return host
