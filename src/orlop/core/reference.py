"""References in full: `host[:port]/path[:tag][@digest]`, as registries are asked for them.

Nothing is added here: what people type is made full before it comes to a daemon. Hosts and paths become parts of URLs
and of directory names, so only what the grammar of the OCI distribution-spec permits is a reference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from orlop.core import digest as digests
from orlop.errors import InvalidArgument

MAX_LENGTH = 1024
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9_-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])(?::(?P<port>[0-9]{{1,5}}))?", re.ASCII)
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """What one registry has under a name; without `tag` and `digest` it is a repository."""

    host: str
    path: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises InvalidArgument for what is no full reference."""
        if len(text) > MAX_LENGTH:
            raise InvalidArgument.verbatim(f"invalid reference: {len(text)} characters, at most {MAX_LENGTH} are read")
        host, _, rest = text.partition("/")
        name, at, digest = rest.partition("@")
        path, colon, tag = name.partition(":")
        if not is_host(host):
            raise _invalid(text, f"{host!r} is no host")
        if not _PATH.fullmatch(path):
            raise _invalid(text, f"{path!r} is no path in lower case")
        if colon and not _TAG.fullmatch(tag):
            raise _invalid(text, f"{tag!r} is no tag")
        if at and (why := digests.problem(digest)):
            raise _invalid(text, f"{digest!r}: {why}")
        return cls(host, path, tag, digest)

    def __str__(self) -> str:
        return f"{self.repository}{self.tag and ':' + self.tag}{self.digest and '@' + self.digest}"

    @property
    def repository(self) -> str:
        """Host and path."""
        return f"{self.host}/{self.path}"

    @property
    def object(self) -> str:
        """What registries know it by: the digest where there is one, else the tag."""
        return self.digest or self.tag

    @property
    def host_name(self) -> str:
        """The host without its port and brackets, as `containerd.io/distribution.source.` labels name it."""
        return split_port(self.host)[0].strip("[]")


def is_host(text: str) -> bool:
    """Whether `text` is `name`, `name:port`, `[address]` or `[address]:port`."""
    match = _HOST.fullmatch(text)
    return match is not None and int(match["port"] or 0) < 1 << 16


def split_port(host: str) -> tuple[str, str]:
    """Name (with the brackets of an address) and port; an empty port where there is none."""
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and not port.endswith("]") else (host, "")


def _invalid(text: str, why: str) -> InvalidArgument:
    return InvalidArgument.verbatim(
        f"invalid reference {text!r}: {why} (expected host/path[:tag][@digest], as docker.io/library/busybox:1)"
    )
