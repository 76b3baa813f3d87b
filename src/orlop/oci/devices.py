"""Devices of a container: what its cgroup lets it use, and the nodes that the runtime makes."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orlop.errors import InvalidArgument, NotFound

_ALWAYS = (("c", 1, 3), ("c", 1, 8), ("c", 1, 7), ("c", 5, 0), ("c", 1, 5), ("c", 1, 9), ("c", 5, 1), ("c", 5, 2))
"""null, random, full, tty, zero, urandom, console, ptmx. Of major 136, the terminals, all are allowed."""
_PTS_MAJOR = 136
_SKIPPED = {"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console", "ptmx"}
"""Of `/dev`, what a container has its own of."""
_ACCESS = re.compile(r"[rwm]{1,3}", re.ASCII)
_RULE = re.compile(r"([abc]) (\*|[0-9]{1,10}):(\*|[0-9]{1,10}) ([rwm]{1,3})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Device:
    """A node of the host, `source`, at `path` inside with the `access` `r`, `w`, `m` (to make such nodes)."""

    source: str
    path: str
    access: str = "rwm"

    @classmethod
    def parse(cls, text: str) -> Device:
        """`SOURCE[:PATH][:ACCESS]`. Raises InvalidArgument."""
        source, _, rest = text.partition(":")
        path, _, access = rest.partition(":")
        if not access and _ACCESS.fullmatch(path):
            path, access = "", path
        access = access or "rwm"
        if not source.startswith("/") or (path and not path.startswith("/")) or not _ACCESS.fullmatch(access):
            raise InvalidArgument(f'device "{text}": not of the form SOURCE[:PATH][:ACCESS], with ACCESS of r, w and m')
        return cls(source, path or source, access)


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """A line of the devices cgroup as `c 10:200 rwm`."""

    type: str
    major: int | None
    minor: int | None
    access: str

    @classmethod
    def parse(cls, text: str) -> DeviceRule:
        match = _RULE.fullmatch(text)
        if match is None:
            raise InvalidArgument(f'device rule "{text}": not of the form "c 10:200 rwm"')
        numbers = [None if number == "*" else int(number) for number in match.group(2, 3)]
        return cls(match[1], numbers[0], numbers[1], match[4])

    def document(self) -> dict[str, Any]:
        rule: dict[str, Any] = {"allow": True, "type": self.type, "access": self.access}
        return rule | {key: value for key, value in (("major", self.major), ("minor", self.minor)) if value is not None}


def allowed(nodes: Sequence[dict[str, Any]], rules: Sequence[DeviceRule], *, everything: bool) -> list[dict[str, Any]]:
    """The rules of the devices cgroup for `nodes`, as `nodes_of` made them."""
    if everything:
        return [{"allow": True, "access": "rwm"}]
    found: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    found += [
        {"allow": True, "type": kind, "major": major, "minor": minor, "access": "rwm"} for kind, major, minor in _ALWAYS
    ]
    found.append({"allow": True, "type": "c", "major": _PTS_MAJOR, "access": "rwm"})
    for node in nodes:
        found.append({"allow": True, "access": node["access"]} | {key: node[key] for key in ("type", "major", "minor")})
    return [*found, *(rule.document() for rule in rules)]


def nodes_of(devices: Sequence[Device]) -> list[dict[str, Any]]:
    """The nodes that `devices` name, those of a directory one by one. Raises NotFound, InvalidArgument."""
    return [node for device in devices for node in _found(device)]


def document(nodes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`nodes` as the spec's `devices`."""
    return [{key: value for key, value in node.items() if key != "access"} for node in nodes]


def of_host(directory: str = "/dev") -> list[dict[str, Any]]:
    """All device nodes of this host but the terminals and what each container has of its own."""
    nodes: list[dict[str, Any]] = []
    for name in sorted(os.listdir(directory)):
        if name not in _SKIPPED and not os.path.islink(path := os.path.join(directory, name)):
            nodes += _below(Device(path, path))
    return nodes


def _found(device: Device) -> list[dict[str, Any]]:
    try:
        source = os.path.realpath(device.source, strict=True)
    except OSError as error:
        raise NotFound(f'device "{device.source}" of this host ({(error.strerror or "").lower()})') from None
    nodes = list(_below(Device(source, device.path, device.access)))
    if not nodes:
        raise InvalidArgument(f'device "{device.source}" is no device node, and no directory with any')
    return nodes


def _below(device: Device) -> Iterator[dict[str, Any]]:
    status = os.lstat(device.source)
    if stat.S_ISDIR(status.st_mode):
        for name in sorted(os.listdir(device.source)):
            inner = os.path.join(device.source, name)
            yield from _below(Device(inner, os.path.join(device.path, name), device.access))
        return
    kind = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
    if kind:
        yield {
            "path": device.path,
            "type": kind,
            "major": os.major(status.st_rdev),
            "minor": os.minor(status.st_rdev),
            "fileMode": stat.S_IMODE(status.st_mode),
            "uid": status.st_uid,
            "gid": status.st_gid,
            "access": device.access,
        }
