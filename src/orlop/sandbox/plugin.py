"""The plugins of this room."""

from __future__ import annotations

from orlop.core.plugin import Registration

REGISTRATIONS: tuple[Registration, ...] = ()
