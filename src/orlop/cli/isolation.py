"""What the flags of `run` say of a container's namespaces, rights and limits."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orlop.cli import sizes
from orlop.client import Client
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.oci import security
from orlop.oci.devices import Device, DeviceRule
from orlop.oci.limits import Limit
from orlop.oci.mounts import BindMount, Tmpfs
from orlop.oci.namespaces import HOST, PRIVATE, IdMapping, Namespaces
from orlop.oci.resources import Resources, Throttle
from orlop.oci.spec import SHM_SIZE

_NAMESPACE_FILES = {"network": "net"}


async def options(client: Client, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `SpecOptions` that the flags of `orlop.cli.flags` set, and `memory` and `cpus`.

    Raises InvalidArgument for a flag that cannot be read, NotFound for a container to join that is not there.
    """
    return {
        "hostname": flags["hostname"],
        "privileged": flags["privileged"],
        "namespaces": await _namespaces(client, flags),
        "security": security.parse(flags["security_opt"]),
        "resources": _resources(flags),
        "add_capabilities": flags["cap_add"],
        "drop_capabilities": flags["cap_drop"],
        "ambient": flags["cap_ambient"],
        "devices": [Device.parse(text) for text in flags["device"]],
        "device_rules": [DeviceRule.parse(text) for text in flags["device_cgroup_rule"]],
        "limits": [Limit.parse(text) for text in flags["ulimit"]],
        "sysctls": pairs(flags["sysctl"], "sysctl"),
        "mounts": [*map(volume, flags["volume"]), *map(_mount, flags["mount"]), *map(_tmpfs, flags["tmpfs"])],
        "shm_size": sizes.parse(flags["shm_size"]) or SHM_SIZE,
        "rootfs_propagation": flags["rootfs_propagation"],
        "cgroup_parent": flags["cgroup_parent"],
        "oom_score_adj": flags["oom_score_adj"],
    }


async def _namespaces(client: Client, flags: Mapping[str, Any]) -> Namespaces:
    modes = {kind: await _mode(client, kind, flags[kind]) for kind in ("network", "pid", "ipc", "uts")}
    if flags["net_host"]:
        if flags["network"] not in ("", HOST):
            raise InvalidArgument.verbatim("--net-host and --net exclude each other")
        modes["network"] = HOST
    uids = [IdMapping.parse(text) for text in flags["uidmap"]]
    gids = [IdMapping.parse(text) for text in flags["gidmap"]]
    return Namespaces(
        **modes,
        cgroup=await _mode(client, "cgroup", flags["cgroupns"], usual=HOST),
        user=await _mode(client, "user", flags["userns"], usual=HOST),
        uid_mappings=uids or gids,
        gid_mappings=gids or uids,
    )


async def _mode(client: Client, kind: str, text: str, usual: str = PRIVATE) -> str:
    word, colon, rest = text.partition(":")
    if not text or (text == "none" and kind == "network"):
        return usual if not text else PRIVATE
    if text in (HOST, PRIVATE):
        return text
    if word == "ns" and rest.startswith("/"):
        return rest
    if word == "container" and colon and rest:
        task = await client.tasks.get(client.scope, rest)
        if not task.pid:
            raise FailedPrecondition.verbatim(f'container "{rest}" does not run: it has no {kind} namespace to join')
        return f"/proc/{task.pid}/ns/{_NAMESPACE_FILES.get(kind, kind)}"
    raise InvalidArgument.verbatim(f"{kind} namespace {text!r}: not host, private, container:ID or ns:PATH")


def _resources(flags: Mapping[str, Any]) -> Resources:
    swap = flags["memory_swap"]
    return Resources(
        memory=sizes.parse(flags["memory"]),
        memory_swap=-1 if swap == "-1" else sizes.parse(swap),
        memory_reservation=sizes.parse(flags["memory_reservation"]),
        cpus=flags["cpus"],
        cpu_shares=flags["cpu_shares"],
        cpuset_cpus=flags["cpuset_cpus"],
        cpuset_mems=flags["cpuset_mems"],
        pids=flags["pids_limit"],
        blkio_weight=flags["blkio_weight"],
        read_bytes=[_throttle(text) for text in flags["device_read_bps"]],
        write_bytes=[_throttle(text) for text in flags["device_write_bps"]],
        unified=pairs(flags["cgroup_conf"], "cgroup file"),
    )


def _throttle(text: str) -> Throttle:
    path, _, rate = text.rpartition(":")
    try:
        status = os.stat(path)
    except OSError as error:
        raise InvalidArgument.verbatim(f"limit {text!r}: {path!r}: {(error.strerror or '').lower()}") from None
    if not stat.S_ISBLK(status.st_mode):
        raise InvalidArgument.verbatim(f"limit {text!r}: {path!r} is no block device")
    return Throttle(os.major(status.st_rdev), os.minor(status.st_rdev), sizes.parse(rate))


def volume(text: str) -> BindMount:
    """`SOURCE:TARGET[:OPTION,...]`. Raises InvalidArgument."""
    source, _, rest = text.partition(":")
    target, _, words = rest.partition(":")
    if not source or not target:
        raise InvalidArgument.verbatim(f"volume {text!r}: not of the form SOURCE:TARGET[:ro]")
    return _bind(f"volume {text!r}", source, target, words.split(",") if words else [])


def _mount(text: str) -> BindMount | Tmpfs:
    fields: dict[str, str] = {}
    words = []
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if equals and key in _MOUNT_KEYS:
            fields[_MOUNT_KEYS[key]] = value
        elif key in ("readonly", "ro", "rw") and value in ("", "true", "1"):
            words.append("ro" if key == "readonly" else key)
        elif key == "options":
            words += value.split(":")
        elif key.startswith(("tmpfs-size", "tmpfs-mode")) and value:
            words.append(f"{key.removeprefix('tmpfs-')}={value}")
        else:
            raise InvalidArgument.verbatim(f"mount {text!r}: {part!r} is not understood")
    target = fields.get("target", "")
    if not target:
        raise InvalidArgument.verbatim(f"mount {text!r}: it has no dst=TARGET")
    if propagation := fields.get("propagation"):
        words.append(propagation)
    match fields.get("type", "bind"):
        case "bind":
            return _bind(f"mount {text!r}", fields.get("source", ""), target, words)
        case "tmpfs":
            return Tmpfs(target, words)
        case other:
            raise InvalidArgument.verbatim(f"mount {text!r}: type {other!r} is neither bind nor tmpfs")


_MOUNT_KEYS = {
    "type": "type",
    "src": "source",
    "source": "source",
    "dst": "target",
    "destination": "target",
    "target": "target",
    "bind-propagation": "propagation",
}
_BIND_OPTIONS = frozenset(
    ("private", "rprivate", "shared", "rshared", "slave", "rslave", "nosuid", "noexec", "nodev", "suid", "exec", "dev",
     "rro", "rbind", "bind", "noatime", "relatime", "nosymfollow", "idmap", "ridmap")
)  # fmt: skip


def _bind(what: str, source: str, target: str, words: Sequence[str]) -> BindMount:
    if not os.path.exists(source):
        raise InvalidArgument.verbatim(f"{what}: there is no {source!r} on this host")
    extra = [word for word in words if word not in ("ro", "rw")]
    unknown = next((word for word in extra if word not in _BIND_OPTIONS), None)
    if unknown is not None:
        raise InvalidArgument.verbatim(f"{what}: option {unknown!r} is unknown")
    return BindMount(os.path.abspath(source), target, "ro" in words, [word for word in extra if "bind" not in word])


def _tmpfs(text: str) -> Tmpfs:
    target, _, words = text.partition(":")
    return Tmpfs(target, words.split(",") if words else ())


def pairs(texts: Iterable[str], what: str) -> dict[str, str]:
    """`KEY=VALUE` each. Raises InvalidArgument."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidArgument.verbatim(f"{what} {text!r}: not of the form KEY=VALUE")
        found[key] = value
    return found
