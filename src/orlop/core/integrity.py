"""Whether what is stored is still what it was."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from orlop.core.scope import Scope


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check says of a blob, by its digest, or of a kept layer, by its diff id; no `problem`: it is whole.

    A layer that is not `present` was unpacked, or is not here at all: that is no problem of a layer.
    """

    kind: Literal["blob", "layer"]
    digest: str
    problem: str = ""
    present: bool = True


class Checker(Protocol):
    def check(
        self, scope: Scope, blobs: Sequence[str], layers: Sequence[str], *, discard: bool = False
    ) -> AsyncIterator[Finding]:
        """Reads all of it, one after the other. With `discard`, what is damaged is made absent: it can come again."""
