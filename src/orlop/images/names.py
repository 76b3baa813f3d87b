"""Image names as people and docker write them, and in full (the grammar of distribution's `reference` package)."""

from __future__ import annotations

import re

from orlop.core import digest as digests
from orlop.errors import InvalidArgument

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(
    rf"(?:(?P<host>{_HOST})/)?(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9a-f]{32,128}))?",
    re.ASCII,
)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}", re.ASCII)

DEFAULT_HOST = "docker.io"
MAX_PATH = 255
_MAX_TEXT = 1024


def normalize(text: str) -> str:
    """The full name: `busybox` is `docker.io/library/busybox:latest`. Of tag and digest the digest is kept.

    Raises InvalidArgument for what is no name.
    """
    if len(text) > _MAX_TEXT:
        raise InvalidArgument(f"image name of {len(text)} characters: at most {_MAX_TEXT} are read")
    first, slash, _ = text.partition("/")
    is_host = slash and ("." in first or ":" in first or first == "localhost" or first != first.lower())
    match = _NAME.fullmatch(text if is_host else f"{DEFAULT_HOST}/{text}")
    if match is None or match["host"] is None or _IDENTIFIER.fullmatch(text):
        raise InvalidArgument(
            f"image name {text!r}: not of the form [host/]path[:tag][@digest], its path in lower case"
        )
    host, path, tag, digest = match.group("host", "path", "tag", "digest")
    if host in (DEFAULT_HOST, "index.docker.io"):
        host = DEFAULT_HOST
        path = path if "/" in path else f"library/{path}"
    if len(path) > MAX_PATH:
        raise InvalidArgument(
            f"image name {text[:80]!r}...: a path of {len(path)} characters, at most {MAX_PATH} can be"
        )
    if digest:
        return f"{host}/{path}@{digests.validate(digest, f'image name {text!r}')}"
    return f"{host}/{path}:{tag or 'latest'}"


def with_tag(name: str, tag: str) -> str:
    """`name` with `tag`, unless it has a tag or digest of its own."""
    last = name.rpartition("/")[2]
    return f"{name}:{tag}" if tag and ":" not in last and "@" not in last else name


def familiar(name: str) -> str:
    """The short form of a full name, as docker shows it."""
    for prefix in (f"{DEFAULT_HOST}/library/", f"{DEFAULT_HOST}/"):
        rest = name.removeprefix(prefix)
        # Without the host, `docker.io/localhost/x` would be another image.
        if rest != name and _is_same(rest, name):
            return rest
    return name


def _is_same(short: str, name: str) -> bool:
    try:
        return normalize(short) == name
    except InvalidArgument:
        return False
