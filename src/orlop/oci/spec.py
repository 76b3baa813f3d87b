"""The default Linux spec of a container (runtime-spec 1.1): what an image and a caller's options make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from orlop.core.typed import SPEC_URL, Typed
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.oci import capabilities as caps
from orlop.oci import devices, limits, mounts
from orlop.oci.devices import Device, DeviceRule
from orlop.oci.limits import Limit
from orlop.oci.mounts import BindMount, Tmpfs
from orlop.oci.namespaces import Namespaces, in_user_namespace
from orlop.oci.resources import Resources
from orlop.oci.security import MASKED_PATHS, READONLY_PATHS, UNCONFINED, Security
from orlop.oci.user import User

VERSION = "1.1.0"
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHM_SIZE = 64 << 20


@dataclass(frozen=True, slots=True)
class ImageDefaults:
    """The part of an image's configuration that a container starts from."""

    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    environment: Sequence[str] = ()
    directory: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True)
class SpecOptions:
    """What a caller asks of a container. Sizes are bytes.

    `privileged` gives it all capabilities that this process may give, all devices of the host, and no filter, masked or
    read-only path. `ambient` are capabilities that also programs of a user other than root get.
    """

    args: Sequence[str] = ()
    environment: Sequence[str] = ()
    directory: str = ""
    hostname: str = ""
    terminal: bool = False
    privileged: bool = False
    readonly_rootfs: bool = False
    rootfs_propagation: str = ""
    namespaces: Namespaces = field(default_factory=Namespaces)
    resources: Resources = field(default_factory=Resources)
    security: Security = field(default_factory=Security)
    add_capabilities: Sequence[str] = ()
    drop_capabilities: Sequence[str] = ()
    ambient: Sequence[str] = ()
    devices: Sequence[Device] = ()
    device_rules: Sequence[DeviceRule] = ()
    limits: Sequence[Limit] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[BindMount | Tmpfs] = ()
    shm_size: int = SHM_SIZE
    oom_score_adj: int | None = None
    cgroup_parent: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    rootfs: str = "rootfs"


def build(namespace: str, id: str, image: ImageDefaults, user: User, options: SpecOptions) -> dict[str, Any]:
    """The spec as a document. Every call makes a new one: nothing is shared between containers.

    Raises InvalidArgument if neither image nor options say what to run, or options contradict each other, NotFound for
    devices that are not there, FailedPrecondition for what this kernel cannot do.
    """
    options.security.refuse_missing()
    capabilities = _capabilities(options, user)
    nodes = devices.of_host() if options.privileged else []
    nodes += devices.nodes_of(options.devices)
    rules = devices.allowed(nodes, options.device_rules, everything=options.privileged)
    spec: dict[str, Any] = {
        "ociVersion": VERSION,
        "process": _process(id, image, user, options, capabilities),
        "root": {"path": options.rootfs, "readonly": options.readonly_rootfs},
        "mounts": [
            *mounts.standard(options.namespaces, shm_size=options.shm_size, privileged=options.privileged),
            *mounts.requested(options.mounts),
        ],
        "linux": {
            "resources": {"devices": rules, **options.resources.document()},
            **_cgroup(namespace, id, options),
            "namespaces": options.namespaces.document(),
            **options.namespaces.mappings(),
            **_optional(options, capabilities["bounding"], nodes),
        },
    }
    if options.hostname:
        if options.namespaces.of("uts") == "host":
            raise InvalidArgument(f'host name "{options.hostname}": the uts namespace is the host\'s')
        spec["hostname"] = options.hostname
    if options.annotations:
        spec["annotations"] = dict(options.annotations)
    return spec


def _cgroup(namespace: str, id: str, options: SpecOptions) -> dict[str, str]:
    """Where its cgroup is. Without a privilege on the host there is none, and the runtime makes do (rootless mode).

    Raises FailedPrecondition if there are limits that only a cgroup can keep.
    """
    if options.cgroup_parent or not in_user_namespace():
        return {"cgroupsPath": f"{options.cgroup_parent or f'/{namespace}'}/{id}"}
    if wanted := options.resources.document():
        raise FailedPrecondition(
            f"limits of {', '.join(wanted)} need a cgroup, and in a user namespace none can be made: leave them out, "
            "or name a cgroup that was delegated as its parent"
        )
    return {}


def _process(
    id: str, image: ImageDefaults, user: User, options: SpecOptions, capabilities: dict[str, list[str]]
) -> dict[str, Any]:
    args = list(options.args) or [*image.entrypoint, *image.command]
    if image.entrypoint and options.args:
        args = [*image.entrypoint, *options.args]
    if not args:
        raise InvalidArgument(f'container "{id}": neither the image nor the caller names a command')
    rlimits = {limit.name: limit for limit in (Limit("nofile", 1024, 1024), *options.limits)}
    process: dict[str, Any] = {
        "terminal": options.terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": sorted({user.gid, *user.groups})},
        "args": args,
        "env": environment(image.environment, options.environment, terminal=options.terminal),
        "cwd": options.directory or image.directory or "/",
        "capabilities": capabilities,
        "rlimits": [limit.document() for limit in rlimits.values()],
        "noNewPrivileges": options.security.no_new_privileges,
    }
    if options.security.apparmor not in ("", UNCONFINED):
        process["apparmorProfile"] = options.security.apparmor
    if options.security.selinux_label:
        process["selinuxLabel"] = options.security.selinux_label
    if options.oom_score_adj is not None:
        if not -1000 <= options.oom_score_adj <= 1000:
            raise InvalidArgument(f"OOM score adjustment {options.oom_score_adj}: it must be -1000 to 1000")
        process["oomScoreAdj"] = options.oom_score_adj
    return process


def _capabilities(options: SpecOptions, user: User) -> dict[str, list[str]]:
    """The sets of the spec. The inheritable one stays away: programs must not gain what their file does not give
    them (CVE-2022-24769); ambient ones have to be inheritable, so those that are asked for make the one exception."""
    start = caps.available() if options.privileged else caps.DEFAULT
    own = caps.chosen(options.add_capabilities, options.drop_capabilities, start)
    sets = {kind: list(own) for kind in ("bounding", "effective", "permitted")}
    ambient = caps.chosen(options.ambient, start=())
    if ambient:
        missing = [name for name in ambient if name not in own]
        if missing:
            raise InvalidArgument(f"ambient capability {missing[0]}: the container does not have it (add it)")
        sets |= {"inheritable": list(ambient), "ambient": list(ambient)}
    return sets


def _optional(options: SpecOptions, bounding: Sequence[str], nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Members of `linux` that not every container has."""
    found: dict[str, Any] = {}
    if not options.privileged and not options.security.unmask_paths:
        found |= {"maskedPaths": list(MASKED_PATHS), "readonlyPaths": list(READONLY_PATHS)}
    if not options.privileged or options.security.seccomp is not None:
        profile = options.security.filter(bounding)
        if profile is not None:
            found["seccomp"] = profile
    if nodes:
        found["devices"] = devices.document(nodes)
    if options.sysctls:
        found["sysctl"] = limits.sysctls(options.sysctls, options.namespaces)
    if options.security.mount_label:
        found["mountLabel"] = options.security.mount_label
    propagation = options.rootfs_propagation or mounts.root_propagation(options.mounts)
    if propagation:
        found["rootfsPropagation"] = propagation
    return found


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
