"""Descriptors: what points at content (OCI image-spec, descriptor.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Content of `size` bytes whose digest is `digest`, to be read as `media_type` says."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
