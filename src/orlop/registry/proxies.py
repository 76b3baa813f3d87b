"""Proxies from the environment, by the rules of Go's `httpproxy`, which registries' other clients follow.

`HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, or the same in lower case; `ALL_PROXY` is read by none of them. Loopback is
never reached by a proxy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from orlop.core.reference import split_port
from orlop.errors import FailedPrecondition
from orlop.registry.hosts import is_loopback
from orlop.registry.redaction import redact

_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxy of each scheme, and the texts of `NO_PROXY`."""

    http: str = ""
    https: str = ""
    exempt: tuple[str, ...] = ()

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Proxies:
        def value(name: str) -> str:
            return environment.get(name) or environment.get(name.lower(), "")

        # In a CGI program HTTP_PROXY is a request's header Proxy.
        http = "" if environment.get("REQUEST_METHOD") else value("HTTP_PROXY")
        exempt = tuple(part.strip().lower() for part in value("NO_PROXY").split(",") if part.strip())
        return cls(http, value("HTTPS_PROXY"), exempt)

    def of_url(self, scheme: str, address: str) -> str:
        """The URL of the proxy for `scheme` and `address` (`name[:port]`); empty for none.

        Raises FailedPrecondition for a proxy of a kind that is not spoken here.
        """
        proxy, setting = (self.https, "HTTPS_PROXY") if scheme == "https" else (self.http, "HTTP_PROXY")
        if not proxy or is_loopback(address) or self._is_exempt(scheme, address.lower()):
            return ""
        url = proxy if "://" in proxy else f"http://{proxy}"
        if urlsplit(url).scheme not in ("http", "https"):
            raise FailedPrecondition(f"{setting} is {redact(url)}: only http and https proxies can be used")
        return url

    def _is_exempt(self, scheme: str, address: str) -> bool:
        name, port = split_port(address)
        name, port = name.strip("[]"), port or _PORTS[scheme]
        return any(_matches(entry, name, port) for entry in self.exempt)


def _matches(entry: str, name: str, port: str) -> bool:
    if entry == "*":
        return True
    try:
        if "/" in entry:
            return ipaddress.ip_address(name) in ipaddress.ip_network(entry, strict=False)
        # An address of its own, without port: colons are part of it.
        return ipaddress.ip_address(entry) == ipaddress.ip_address(name)
    except ValueError:
        pass
    wanted, wanted_port = split_port(entry)
    wanted = wanted.strip("[]")
    if not wanted or (wanted_port and wanted_port != port):
        return False
    wanted = wanted.removeprefix("*") if wanted.startswith("*.") else wanted
    if wanted.startswith("."):
        return name.endswith(wanted)
    return name == wanted or name.endswith(f".{wanted}")
