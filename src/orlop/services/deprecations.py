"""Warnings of deprecated things in use, as introspection tells them to clients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orlop.core import clock

PREFIX = "io.containerd.deprecation/"
CGROUP_V1 = PREFIX + "cgroup-v1"

MESSAGES = {
    CGROUP_V1: "This host uses cgroup v1, which containerd deprecates since 2.2 and drops by May 2029. "
    "Boot it with cgroup v2.",
}

_UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers")


@dataclass(frozen=True, slots=True)
class Deprecation:
    id: str
    message: str
    last_occurrence: int
    """Nanoseconds since 1970."""


class Deprecations:
    """What was warned of since the daemon started, each kept with its last time."""

    def __init__(self, now: Callable[[], int] = clock.now) -> None:
        self._now = now
        self._warnings: dict[str, Deprecation] = {}

    def emit(self, id: str, message: str = "") -> None:
        """Notes that the deprecated thing `id` is used now. Raises KeyError for an unknown id without a message."""
        self._warnings[id] = Deprecation(id, message or MESSAGES[id], self._now())

    def warnings(self) -> list[Deprecation]:
        return [self._warnings[id] for id in sorted(self._warnings)]

    def note_host(self) -> None:
        """Warns of what this host has."""
        if not _UNIFIED.exists():
            self.emit(CGROUP_V1)
