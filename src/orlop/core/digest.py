"""Digests: `<algorithm>:<lower-case hex>` (OCI image-spec, descriptor.md)."""

from __future__ import annotations

import hashlib
import re

from orlop.errors import InvalidArgument

_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_KNOWN = re.compile("|".join(f"{name}:[a-f0-9]{{{length}}}" for name, length in _LENGTHS.items()), re.ASCII)
_FORM = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+", re.ASCII)

EMPTY_SHA256 = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def problem(text: str) -> str:
    """Why `text` is no digest, in the words clients know; empty if it is one."""
    if _KNOWN.fullmatch(text):
        return ""
    if not _FORM.fullmatch(text):
        return "invalid checksum digest format"
    algorithm, _, encoded = text.partition(":")
    length = _LENGTHS.get(algorithm)
    if length is None:
        return "unsupported digest algorithm"
    if len(encoded) != length:
        return "invalid checksum digest length"
    return "invalid checksum digest format"


def validate(text: str, what: str = "") -> str:
    """Returns `text` if it is a digest, else raises InvalidArgument led by `what`."""
    why = problem(text)
    if why:
        raise InvalidArgument(f"{what}: {why}" if what else why)
    return text


def algorithm_of(text: str) -> str:
    """The hash that checks `text`: sha256 unless it names another one we have."""
    algorithm = text.partition(":")[0]
    return algorithm if algorithm in _LENGTHS else "sha256"


def of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of `data`."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
