"""The refs that ingests have while an image comes, by which clients find them in the content store."""

from __future__ import annotations

from orlop.core import media
from orlop.core.descriptor import Descriptor

REF_NAME = "org.opencontainers.image.ref.name"
_MAX_NAME = 512
"""Characters of an annotation that become a part of a ref."""


def ref_of(descriptor: Descriptor) -> str:
    """`layer-sha256:…`, or with the name that an annotation gives, `manifest-<name>@sha256:…`."""
    name = descriptor.annotations.get(REF_NAME, "")[:_MAX_NAME]
    return f"{media.ref_prefix(descriptor.media_type)}{name and name + '@'}{descriptor.digest}"
