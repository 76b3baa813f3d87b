"""A mount as snapshotters give it and the kernel takes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mount:
    """`source` mounted as `type` with `options`; `target` is relative to the root that is being assembled."""

    type: str
    source: str
    options: tuple[str, ...] = ()
    target: str = ""
