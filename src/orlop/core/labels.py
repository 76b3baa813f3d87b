"""Labels: short text by key, with containerd's limit of size."""

from __future__ import annotations

from collections.abc import Mapping

from orlop.errors import InvalidArgument

MAX_SIZE = 4096
"""Bytes of key and value together."""

RESERVED_PREFIX = "containerd.io/"
UNCOMPRESSED = "containerd.io/uncompressed"


def validate(labels: Mapping[str, str], what: str = "") -> None:
    """Raises InvalidArgument, its message led by `what`, where a label is too long."""
    prefix = f"{what}: " if what else ""
    for key, value in labels.items():
        size = len(key.encode()) + len(value.encode())
        if size > MAX_SIZE:
            shown = key.encode()[:64].decode(errors="ignore")
            raise InvalidArgument(
                f"{prefix}label key and value length ({size} bytes) "
                f"greater than maximum size ({MAX_SIZE} bytes), key: {shown}"
            )


def stored(labels: Mapping[str, str] | None) -> dict[str, str]:
    """The labels that a store keeps: one with an empty value is not kept."""
    return {key: value for key, value in (labels or {}).items() if value}
