"""Who a call acts for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scope:
    """The namespace a call works in, and the lease that what it makes shall join (empty: none).

    `lasts`: what the call does is durable on return. Otherwise a loss of power may take it back, until something is
    done after it that lasts: for the many steps of one thing of which nobody is told before its end.
    """

    namespace: str
    lease: str = ""
    lasts: bool = True
