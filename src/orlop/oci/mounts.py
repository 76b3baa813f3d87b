"""The mounts of a container: those that every one has, and those that a caller asks for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orlop.errors import InvalidArgument
from orlop.oci.namespaces import HOST, Namespaces, has_group

SHARED, SLAVE = ("shared", "rshared"), ("slave", "rslave")
_STRICT = ("nosuid", "noexec", "nodev")
_TTY_GROUP = 5


@dataclass(frozen=True, slots=True)
class BindMount:
    """`source` of the host at `destination` inside. `options` are the runtime-spec's, such as `rshared` or `noexec`."""

    source: str
    destination: str
    readonly: bool = False
    options: Sequence[str] = ()

    def document(self) -> dict[str, Any]:
        propagation = () if any(option in _PROPAGATIONS for option in self.options) else ("rprivate",)
        options = ["rbind", *propagation, "ro" if self.readonly else "rw", *self.options]
        return _mount(self.destination, "bind", self.source, options)


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A file system in memory at `destination`; `options` such as `size=64m` or `mode=1777`."""

    destination: str
    options: Sequence[str] = ()

    def document(self) -> dict[str, Any]:
        return _mount(self.destination, "tmpfs", "tmpfs", ["nosuid", "nodev", *self.options])


_PROPAGATIONS = frozenset(
    ("private", "rprivate", *SHARED, *SLAVE, "unbindable", "runbindable"),
)


def standard(namespaces: Namespaces, *, shm_size: int, privileged: bool) -> list[dict[str, Any]]:
    """What every container has mounted. Where the host's namespaces are shared, so are the files that go with them."""
    maps_ids = namespaces.maps_ids
    mounts = [
        _mount("/proc", "proc", "proc", _STRICT),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount("/dev/pts", "devpts", "devpts", _pts_options(namespaces)),
    ]
    if namespaces.of("ipc") == HOST:
        mounts += [_mount(path, "bind", path, ["rbind", *_STRICT]) for path in ("/dev/shm", "/dev/mqueue")
                   if os.path.isdir(path)]  # fmt: skip
    else:
        mounts.append(_mount("/dev/shm", "tmpfs", "shm", [*_STRICT, "mode=1777", f"size={shm_size}"]))
        mounts.append(_mount("/dev/mqueue", "mqueue", "mqueue", _STRICT))
    access = "rw" if privileged else "ro"
    if maps_ids and namespaces.of("network") == HOST:
        # A sysfs shows a network namespace, and can be mounted by its owner only.
        mounts.append(_mount("/sys", "bind", "/sys", ["rbind", *_STRICT, access]))
    else:
        mounts.append(_mount("/sys", "sysfs", "sysfs", [*_STRICT, access]))
    mounts.append(_mount("/run", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]))
    if namespaces.of("network") == HOST:
        mounts += [
            _mount(path, "bind", path, ["rbind", "ro"])
            for path in ("/etc/hosts", "/etc/resolv.conf")
            if os.path.exists(path)
        ]
    return mounts


def requested(mounts: Sequence[BindMount | Tmpfs]) -> list[dict[str, Any]]:
    """Those of a caller. Raises InvalidArgument for a destination that is not absolute."""
    for mount in mounts:
        if not mount.destination.startswith("/"):
            raise InvalidArgument(f'mount destination "{mount.destination}" is not absolute')
    return [mount.document() for mount in mounts]


def root_propagation(mounts: Sequence[BindMount | Tmpfs]) -> str:
    """The propagation that the container's root needs, so that `mounts` can have theirs; empty for the usual one."""
    options = {option for mount in mounts if isinstance(mount, BindMount) for option in mount.options}
    if options & set(SHARED):
        return "rshared"
    return "rslave" if options & set(SLAVE) else ""


def _pts_options(namespaces: Namespaces) -> list[str]:
    options = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    groups = namespaces.gid_mappings
    if any(entry.container <= _TTY_GROUP < entry.container + entry.size for entry in groups) or (
        not groups and has_group(_TTY_GROUP)
    ):
        options.append(f"gid={_TTY_GROUP}")
    return options


def _mount(destination: str, kind: str, source: str, options: Sequence[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}
