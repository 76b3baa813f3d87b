"""Descriptors: what points at content (OCI image-spec, descriptor.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Content of `size` bytes whose digest is `digest`, to be read as `media_type` says.

    `urls` and `artifact_type` are known only where a document says them; no message of the API has them.
    """

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    urls: tuple[str, ...] = ()
    """Where else the content is, tried before the registry (layers that may not be distributed)."""
    artifact_type: str = ""
