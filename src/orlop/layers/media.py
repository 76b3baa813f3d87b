"""Media types of layers, and how each is opened (OCI image-spec, media-types.md; Docker's image manifest v2)."""

from __future__ import annotations

from enum import Enum, auto

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = OCI_LAYER + "+gzip"
OCI_LAYER_ZSTD = OCI_LAYER + "+zstd"

_OCI = frozenset((OCI_LAYER, "application/vnd.oci.image.layer.nondistributable.v1.tar"))
_DOCKER = "application/vnd.docker.image.rootfs."
_DOCKER_ALL = frozenset(
    _DOCKER + form + suffix for form in ("diff.tar", "foreign.diff.tar") for suffix in ("", ".gzip", ".zstd")
)


class Opening(Enum):
    RAW = auto()
    """The stream is the tar."""
    DETECTED = auto()
    """The stream is a tar, compressed as its first bytes say."""


def source(digest: str, opening: Opening) -> str:
    """What names the tar that the blob `digest` becomes."""
    return f"{digest} {opening.name.lower()}"


def opening(media_type: str) -> Opening | None:
    """How a layer of `media_type` becomes a tar; None where only a configured program could tell."""
    base, *suffixes = media_type.split("+")
    last = max(suffixes, default="")
    if base in _OCI:
        if not suffixes:
            return Opening.RAW
        return Opening.DETECTED if last in ("gzip", "zstd") else None
    if base in _DOCKER_ALL:
        return Opening.RAW if suffixes else Opening.DETECTED
    return None
