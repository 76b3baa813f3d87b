"""Who a call acts for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scope:
    """The namespace a call works in, and the lease that what it makes shall join (empty: none)."""

    namespace: str
    lease: str = ""
