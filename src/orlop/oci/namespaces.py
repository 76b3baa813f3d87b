"""Namespaces of a container: its own, another's, or the host's (runtime-spec, config-linux, "Namespaces")."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orlop.errors import InvalidArgument

PRIVATE, HOST = "private", "host"
KINDS = ("pid", "ipc", "uts", "mount", "network", "cgroup", "user")
_MAPPING = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})", re.ASCII)
_MAX_ID = 2**32 - 2
_WHOLE_ID_SPACE = ["0", "0", "4294967295"]


@dataclass(frozen=True, slots=True)
class IdMapping:
    """`size` ids from `container` on are those from `host` on outside."""

    container: int
    host: int
    size: int

    @classmethod
    def parse(cls, text: str) -> IdMapping:
        """`CONTAINER:HOST:SIZE`. Raises InvalidArgument."""
        match = _MAPPING.fullmatch(text)
        if match is None:
            raise InvalidArgument(f'id mapping "{text}": not of the form CONTAINER:HOST:SIZE')
        container, host, size = (int(number) for number in match.groups())
        if not size or container + size > _MAX_ID + 1 or host + size > _MAX_ID + 1:
            raise InvalidArgument(f'id mapping "{text}": ids are 0 to {_MAX_ID}, and at least one must be mapped')
        return cls(container, host, size)

    def __str__(self) -> str:
        return f"{self.container}:{self.host}:{self.size}"

    def document(self) -> dict[str, int]:
        return {"containerID": self.container, "hostID": self.host, "size": self.size}


def to_host(id: int, mappings: Sequence[IdMapping]) -> int:
    """The id outside of `id`. Raises InvalidArgument if it is not mapped."""
    for mapping in mappings:
        if mapping.container <= id < mapping.container + mapping.size:
            return mapping.host + id - mapping.container
    raise InvalidArgument(f"id {id} is not mapped by {', '.join(map(str, mappings))}")


def in_user_namespace() -> bool:
    """Whether this process's root is not the host's."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() != _WHOLE_ID_SPACE


def has_group(id: int) -> bool:
    """Whether the group `id` is mapped in this process's user namespace."""
    with open("/proc/self/gid_map", encoding="ascii") as file:
        extents = [[int(number) for number in line.split()] for line in file]
    return any(first <= id < first + size for first, _, size in extents)


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Each is `private`, `host`, or the path of a namespace to join. A user namespace is private where ids are mapped.

    The mount namespace is always private: a container has its own root.
    """

    network: str = PRIVATE
    pid: str = PRIVATE
    ipc: str = PRIVATE
    uts: str = PRIVATE
    cgroup: str = HOST
    user: str = HOST
    uid_mappings: Sequence[IdMapping] = ()
    gid_mappings: Sequence[IdMapping] = ()

    @property
    def maps_ids(self) -> bool:
        return bool(self.uid_mappings or self.gid_mappings)

    def of(self, kind: str) -> str:
        if kind == "mount":
            return PRIVATE
        if kind == "user" and self.maps_ids:
            return self.user if self.user.startswith("/") else PRIVATE
        return str(getattr(self, kind))

    def document(self) -> list[dict[str, str]]:
        """The `namespaces` of the spec. Raises InvalidArgument for what is neither word nor absolute path."""
        found = []
        for kind in KINDS:
            mode = self.of(kind)
            if mode == PRIVATE:
                found.append({"type": kind})
            elif mode.startswith("/"):
                found.append({"type": kind, "path": mode})
            elif mode != HOST:
                raise InvalidArgument(f'{kind} namespace "{mode}": neither private, host nor an absolute path')
        return found

    def mappings(self) -> Mapping[str, Any]:
        """`uidMappings` and `gidMappings` of the spec. Raises InvalidArgument if only one kind is mapped."""
        if not self.maps_ids:
            if self.of("user") == PRIVATE:
                raise InvalidArgument("a user namespace needs mappings of users and groups")
            return {}
        if not self.uid_mappings or not self.gid_mappings:
            raise InvalidArgument("a user namespace needs mappings of both users and groups")
        return {
            "uidMappings": [mapping.document() for mapping in self.uid_mappings],
            "gidMappings": [mapping.document() for mapping in self.gid_mappings],
        }
