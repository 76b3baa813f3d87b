"""The default Linux spec of a container (runtime-spec 1.1): what an image and a caller's options make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from orlop.core.typed import SPEC_URL, Typed
from orlop.errors import InvalidArgument
from orlop.oci.user import User

VERSION = "1.1.0"
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
        "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
    )
)  # fmt: skip

MASKED_PATHS = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip

READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_DEVICES = (("c", 1, 3), ("c", 1, 8), ("c", 1, 7), ("c", 5, 0), ("c", 1, 5), ("c", 1, 9), ("c", 5, 1))


@dataclass(frozen=True, slots=True)
class ImageDefaults:
    """The part of an image's configuration that a container starts from."""

    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    environment: Sequence[str] = ()
    directory: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True)
class BindMount:
    source: str
    destination: str
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class SpecOptions:
    """What a caller asks of a container. `memory` is bytes, `cpus` a number of processors; 0 is no limit."""

    args: Sequence[str] = ()
    environment: Sequence[str] = ()
    directory: str = ""
    hostname: str = ""
    terminal: bool = False
    readonly_rootfs: bool = False
    host_network: bool = False
    memory: int = 0
    cpus: float = 0.0
    pids: int = 0
    mounts: Sequence[BindMount] = ()
    annotations: dict[str, str] = field(default_factory=dict)
    rootfs: str = "rootfs"


def build(namespace: str, id: str, image: ImageDefaults, user: User, options: SpecOptions) -> dict[str, Any]:
    """The spec as a document. Every call makes a new one: nothing is shared between containers.

    Raises InvalidArgument if neither image nor options say what to run.
    """
    args = list(options.args) or [*image.entrypoint, *image.command]
    if image.entrypoint and options.args:
        args = [*image.entrypoint, *options.args]
    if not args:
        raise InvalidArgument(f'container "{id}": neither the image nor the caller names a command')
    capabilities = list(CAPABILITIES)
    process: dict[str, Any] = {
        "terminal": options.terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": sorted({user.gid, *user.groups})},
        "args": args,
        "env": environment(image.environment, options.environment, terminal=options.terminal),
        "cwd": options.directory or image.directory or "/",
        # Inheritable and ambient stay away: programs must not gain what their file does not give them.
        "capabilities": {kind: list(capabilities) for kind in ("bounding", "effective", "permitted")},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    }
    spec: dict[str, Any] = {
        "ociVersion": VERSION,
        "process": process,
        "root": {"path": options.rootfs, "readonly": options.readonly_rootfs},
        "mounts": [*_mounts(host_network=options.host_network), *map(_bind, options.mounts)],
        "linux": {
            "resources": _resources(options),
            "cgroupsPath": f"/{namespace}/{id}",
            "namespaces": [{"type": kind} for kind in _namespaces(host_network=options.host_network)],
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
        },
    }
    if options.hostname:
        spec["hostname"] = options.hostname
    if options.annotations:
        spec["annotations"] = dict(options.annotations)
    return spec


def typed(spec: dict[str, Any]) -> Typed:
    """`spec` as container records hold it."""
    return Typed(SPEC_URL, msgspec.json.encode(spec))


def environment(image: Sequence[str], added: Sequence[str], *, terminal: bool = False) -> list[str]:
    """The image's variables, replaced and extended by `added`; `NAME` without a value removes one."""
    values = {"PATH": DEFAULT_PATH.partition("=")[2]}
    if terminal:
        values["TERM"] = "xterm"
    for pair in (*image, *added):
        name, equals, value = pair.partition("=")
        if not name or "\0" in pair:
            raise InvalidArgument(f"environment {pair!r}: NAME=value is needed")
        if equals:
            values[name] = value
        else:
            values.pop(name, None)
    return [f"{name}={value}" for name, value in values.items()]


def _namespaces(*, host_network: bool) -> list[str]:
    kinds = ["pid", "ipc", "uts", "mount"]
    return kinds if host_network else [*kinds, "network"]


def _mounts(*, host_network: bool) -> list[dict[str, Any]]:
    strict = ["nosuid", "noexec", "nodev"]
    mounts: list[dict[str, Any]] = [
        _mount("/proc", "proc", "proc", strict),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        _mount("/dev/shm", "tmpfs", "shm", [*strict, "mode=1777", "size=65536k"]),
        _mount("/dev/mqueue", "mqueue", "mqueue", strict),
        _mount("/sys", "sysfs", "sysfs", [*strict, "ro"]),
        _mount("/run", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ]
    if host_network:
        for path in ("/etc/hosts", "/etc/resolv.conf"):
            mounts.append(_mount(path, "bind", path, ["rbind", "ro"]))
    return mounts


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _bind(mount: BindMount) -> dict[str, Any]:
    if not mount.destination.startswith("/"):
        raise InvalidArgument(f'mount destination "{mount.destination}" is not absolute')
    return _mount(mount.destination, "bind", mount.source, ["rbind", "rprivate", "ro" if mount.readonly else "rw"])


def _resources(options: SpecOptions) -> dict[str, Any]:
    devices: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    devices += [
        {"allow": True, "type": kind, "major": major, "minor": minor, "access": "rwm"}
        for kind, major, minor in _DEVICES
    ]
    devices += [
        {"allow": True, "type": "c", "major": 136, "access": "rwm"},
        {"allow": True, "type": "c", "major": 5, "minor": 2, "access": "rwm"},
    ]
    resources: dict[str, Any] = {"devices": devices}
    if options.memory:
        resources["memory"] = {"limit": options.memory}
    if options.cpus:
        resources["cpu"] = {"quota": int(options.cpus * 100_000), "period": 100_000}
    if options.pids:
        resources["pids"] = {"limit": options.pids}
    return resources
