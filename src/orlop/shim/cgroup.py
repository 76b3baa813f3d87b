"""Where a process's control groups are, on cgroup v1, v2 and hosts that have both."""

from __future__ import annotations

import errno
import functools
import os
from dataclasses import dataclass, field

from orlop.shim import files


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Directories by controller; on a v2 host only `unified` is set."""

    unified: str = ""
    controllers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, pid: int) -> Cgroup | None:
        """The cgroup of `pid`; None if it has exited, or is in the root of the hierarchy that counts."""
        try:
            lines = [line.split(":", 2) for line in os.fsdecode(files.read(f"/proc/{pid}/cgroup")).splitlines()]
        except (FileNotFoundError, ProcessLookupError):
            return None
        unified, hierarchies = _hierarchies()
        controllers: dict[str, str] = {}
        own = ""
        for _, names, path in lines:
            if not names:
                own = _below(unified, path) if unified else ""
            for name in names.split(","):
                if name in hierarchies and path != "/":
                    controllers[name] = _below(hierarchies[name], path)
        if controllers:
            return cls(controllers=controllers)
        return cls(unified=own) if own else None

    @property
    def exists(self) -> bool:
        directories = [self.unified] if self.unified else self.controllers.values()
        return any(os.path.isdir(directory) for directory in directories)


def own_procs() -> str:
    """The path of the `cgroup.procs` of a cgroup that this process is in. Raises OSError if none can be seen."""
    unified, hierarchies = _hierarchies_at_first()
    for line in os.fsdecode(files.read("/proc/self/cgroup")).splitlines():
        _, names, path = line.split(":", 2)
        hierarchy = hierarchies.get(names.split(",")[0]) if names else unified
        if hierarchy is not None and ".." not in path.split("/"):
            return os.path.join(_below(hierarchy, path), "cgroup.procs")
    raise FileNotFoundError(errno.ENOENT, "no cgroup of this process is mounted", "/proc/self/cgroup")


def _hierarchies() -> tuple[tuple[str, str] | None, dict[str, tuple[str, str]]]:
    """The mount point and root of the v2 hierarchy, and those of each v1 controller."""
    unified: tuple[str, str] | None = None
    controllers: dict[str, tuple[str, str]] = {}
    for line in os.fsdecode(files.read("/proc/self/mountinfo")).split("\n")[:-1]:
        before, _, after = line.partition(" - ")
        root, point = before.split(" ")[3:5]
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            unified = unified or (point, root)
        elif kind == "cgroup":
            for name in options.split(","):
                controllers.setdefault(name, (point, root))
    return unified, controllers


_hierarchies_at_first = functools.cache(_hierarchies)
"""They stay where they are, and a host with many containers has a long list of mounts."""


def _below(hierarchy: tuple[str, str], path: str) -> str:
    point, root = hierarchy
    return os.path.join(point, os.path.relpath(path, root)) if root != "/" else point + path
