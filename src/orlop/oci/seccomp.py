"""Seccomp filters: the default one, and those of a file, as the runtime-spec has them (config-linux, "Seccomp").

A file may be a runtime-spec `seccomp` object or a profile of the form that docker reads, whose rules hold only under
conditions. What cannot be understood is refused: a condition that is passed over would widen a filter.
"""

from __future__ import annotations

import errno
import platform
import re
import socket
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from orlop.errors import InvalidArgument
from orlop.oci import syscalls

_ALLOW, _ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
_LIMIT = 4 << 20
_UNCONFINED_CLONE = 0x7E020000
"""CLONE_NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and NEWCGROUP: a plain clone(2) has none of them."""
_PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, UNAME26, both of them, and the question what it is."""


def default(
    capabilities: Collection[str], *, machine: str = platform.machine(), kernel: str = platform.release()
) -> dict[str, Any]:
    """The filter for a container with these in its bounding set. What it does not allow fails with EPERM."""
    rules = [_allow(sorted(syscalls.ALWAYS)), *_sockets()]
    rules += [_allow(["personality"], _condition(0, value, "SCMP_CMP_EQ")) for value in _PERSONALITIES]
    if kernel_version(kernel) >= (4, 8):
        rules.append(_allow(syscalls.SINCE_LINUX_4_8))
    if machine in syscalls.BY_MACHINE:
        rules.append(_allow(syscalls.BY_MACHINE[machine]))
    rules += [_allow(names) for name, names in syscalls.BY_CAPABILITY.items() if name in capabilities]
    if "CAP_SYS_ADMIN" not in capabilities:
        flags = 1 if machine in ("s390", "s390x") else 0
        rules.append(_allow(["clone"], _condition(flags, _UNCONFINED_CLONE, "SCMP_CMP_MASKED_EQ", 0)))
        # A filter cannot see clone3's flags, they are in memory; ENOSYS makes the C library use clone (moby#42681).
        rules.append({"names": ["clone3"], "action": _ERRNO, "errnoRet": errno.ENOSYS})
    return {
        "defaultAction": _ERRNO,
        "architectures": list(syscalls.ARCHITECTURES.get(machine, ())),
        "syscalls": rules,
    }


def _sockets() -> list[dict[str, Any]]:
    """All families but AF_ALG and AF_VSOCK, as ranges: libseccomp joins conditions on one argument by "or"."""
    alg, vsock = int(socket.AF_ALG), int(socket.AF_VSOCK)
    return [
        _allow(["socket"], _condition(0, alg, "SCMP_CMP_LT")),
        *(_allow(["socket"], _condition(0, family, "SCMP_CMP_EQ")) for family in range(alg + 1, vsock)),
        _allow(["socket"], _condition(0, vsock, "SCMP_CMP_GT")),
    ]


def _allow(names: Collection[str], *conditions: dict[str, Any]) -> dict[str, Any]:
    return {"names": list(names), "action": _ALLOW, **({"args": list(conditions)} if conditions else {})}


def _condition(index: int, value: int, comparison: str, second: int | None = None) -> dict[str, Any]:
    condition = {"index": index, "value": value, "op": comparison}
    return condition if second is None else condition | {"valueTwo": second}


class _Condition(msgspec.Struct, forbid_unknown_fields=True, rename="camel", omit_defaults=True):
    index: int
    value: int
    op: str
    value_two: int = 0


class _When(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    caps: list[str] = []
    arches: list[str] = []
    min_kernel: str = ""


class _Rule(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    action: str
    names: list[str] = []
    name: str = ""
    args: list[_Condition] | None = None
    errno_ret: int | None = None
    errno: str = ""
    comment: str = ""
    includes: _When | None = None
    excludes: _When | None = None


class _Architecture(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    architecture: str
    sub_architectures: list[str] | None = None


class _Profile(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    default_action: str
    default_errno_ret: int | None = None
    default_errno: str = ""
    architectures: list[str] | None = None
    arch_map: list[_Architecture] | None = None
    flags: list[str] | None = None
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: list[_Rule] | None = None


def read(
    document: bytes,
    capabilities: Collection[str],
    *,
    machine: str = platform.machine(),
    kernel: str = platform.release(),
) -> dict[str, Any]:
    """The filter that `document` describes, for a container with these capabilities in its bounding set.

    Raises InvalidArgument if it is no profile, or has a key, action or condition that is not known here.
    """
    if len(document) > _LIMIT:
        raise InvalidArgument(f"seccomp profile: longer than {_LIMIT} bytes")
    try:
        profile = msgspec.json.decode(document, type=_Profile)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidArgument(f"seccomp profile: {error}") from None
    native = syscalls.ARCHITECTURES.get(machine, ())
    result: dict[str, Any] = {"defaultAction": _action(profile.default_action)}
    if profile.default_errno_ret is not None:
        result["defaultErrnoRet"] = profile.default_errno_ret
    if profile.architectures and profile.arch_map:
        raise InvalidArgument("seccomp profile: architectures and archMap exclude each other")
    architectures = list(profile.architectures or ())
    for entry in profile.arch_map or ():
        if entry.architecture in native:
            architectures = [entry.architecture, *(entry.sub_architectures or ())]
    if architectures:
        result["architectures"] = architectures
    for key, value in (
        ("flags", profile.flags),
        ("listenerPath", profile.listener_path),
        ("listenerMetadata", profile.listener_metadata),
    ):
        if value:
            result[key] = value
    rules = [rule for rule in profile.syscalls or () if _holds(rule, capabilities, machine, kernel)]
    result["syscalls"] = [_rule(rule) for rule in rules]
    return result


def _holds(rule: _Rule, capabilities: Collection[str], machine: str, kernel: str) -> bool:
    includes, excludes = rule.includes or _When(), rule.excludes or _When()
    for when in (includes, excludes):
        if not set(when.arches) <= set(_GO_NAMES.values()) | _OTHER_GO_NAMES:
            raise InvalidArgument(f"seccomp profile: architectures {when.arches}: not all of them are known")
    own = _GO_NAMES.get(machine, machine)
    return (
        set(includes.caps) <= set(capabilities)
        and (not includes.arches or own in includes.arches)
        and (not includes.min_kernel or kernel_version(kernel) >= kernel_version(includes.min_kernel))
        and not set(excludes.caps) & set(capabilities)
        and own not in excludes.arches
        and not (excludes.min_kernel and kernel_version(kernel) >= kernel_version(excludes.min_kernel))
    )


def _rule(rule: _Rule) -> dict[str, Any]:
    names = [*rule.names, *([rule.name] if rule.name else [])]
    if not names or (rule.names and rule.name):
        raise InvalidArgument('seccomp profile: a rule needs either "names" or "name"')
    made: dict[str, Any] = {"names": names, "action": _action(rule.action)}
    if rule.errno_ret is not None:
        made["errnoRet"] = rule.errno_ret
    if rule.args:
        made["args"] = [msgspec.to_builtins(condition) for condition in rule.args]
    return made


def _action(name: str) -> str:
    if name not in _ACTIONS:
        raise InvalidArgument(f'seccomp profile: action "{name}" is not one of {", ".join(sorted(_ACTIONS))}')
    return name


def kernel_version(release: str) -> tuple[int, int]:
    """Major and minor of `6.1.0-13-amd64`. Raises InvalidArgument."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})", release, re.ASCII)
    if match is None:
        raise InvalidArgument(f'kernel version "{release}" cannot be read')
    return int(match[1]), int(match[2])


_ACTIONS = frozenset(
    f"SCMP_ACT_{name}"
    for name in ("ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "LOG", "NOTIFY", "TRACE", "TRAP")
)
_GO_NAMES: Mapping[str, str] = {
    "x86_64": "amd64",
    "i686": "386",
    "aarch64": "arm64",
    "armv7l": "arm",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
    "loongarch64": "loong64",
    "mips64": "mips64",
}
"""Docker's profiles name machines as Go does."""
_OTHER_GO_NAMES = {"mips", "mips64le", "mips64n32", "mips64p32", "mipsel64", "mipsle", "ppc64", "s390", "x32"}
