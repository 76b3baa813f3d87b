"""Image verifiers: what may refuse an image before it is pulled (plugin type `io.containerd.image-verifier.v1`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from orlop.core.descriptor import Descriptor


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether an image may be pulled, and why it may or may not."""

    ok: bool
    reason: str = ""


class ImageVerifier(Protocol):
    async def verify(self, name: str, descriptor: Descriptor) -> Judgement:
        """Judges the image that `name` was resolved to. All verifiers must allow it; one that raises refuses it."""
