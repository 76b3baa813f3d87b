"""Limits and kernel settings of a container's processes: `ulimit`s and sysctls."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orlop.errors import InvalidArgument
from orlop.oci.namespaces import HOST, Namespaces

INFINITE = 2**64 - 1
_NAMES = frozenset(
    ("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
     "rttime", "sigpending", "stack")
)  # fmt: skip
_VALUE = re.compile(r"[0-9]{1,19}", re.ASCII)
_IPC_SETTINGS = frozenset(
    f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)
_SETTING = re.compile(r"[a-z0-9_-]+(?:[./][A-Za-z0-9_:@-]+)+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Limit:
    """An rlimit (getrlimit(2)) by the name that `ulimit` options of container tools have, such as `nofile`."""

    name: str
    soft: int
    hard: int

    @classmethod
    def parse(cls, text: str) -> Limit:
        """`NAME=SOFT[:HARD]`, with -1 or `unlimited` for none. Raises InvalidArgument."""
        name, equals, values = text.partition("=")
        soft, colon, hard = values.partition(":")
        if name not in _NAMES or not equals:
            raise InvalidArgument(
                f'limit "{text}": not of the form NAME=SOFT[:HARD], NAME being one of {", ".join(sorted(_NAMES))}'
            )
        limit = cls(name, _value(text, soft), _value(text, hard if colon else soft))
        if limit.soft > limit.hard:
            raise InvalidArgument(f'limit "{text}": the soft limit is above the hard one')
        return limit

    def document(self) -> dict[str, Any]:
        return {"type": f"RLIMIT_{self.name.upper()}", "soft": self.soft, "hard": self.hard}


def _value(text: str, value: str) -> int:
    if value in ("-1", "unlimited"):
        return INFINITE
    if not _VALUE.fullmatch(value):
        raise InvalidArgument(f'limit "{text}": "{value}" is no number')
    return int(value)


def sysctls(settings: Mapping[str, str], namespaces: Namespaces) -> dict[str, str]:
    """`settings` as they are, if each belongs to a namespace of the container's own. Raises InvalidArgument."""
    for name, value in settings.items():
        kind = _namespace_of(name)
        if not kind:
            raise InvalidArgument(f'sysctl "{name}" is no setting of a namespace: it would change the whole host')
        if namespaces.of(kind) == HOST:
            raise InvalidArgument(f'sysctl "{name}": the {kind} namespace is the host\'s')
        if not value or not value.isascii() or not value.replace("\t", " ").isprintable():
            raise InvalidArgument(f'sysctl "{name}": its value must be printable text')
    return dict(settings)


def _namespace_of(name: str) -> str:
    if not _SETTING.fullmatch(name):
        return ""
    if name.startswith(("net.", "net/")):
        return "network"
    if name in _IPC_SETTINGS or name.startswith("fs.mqueue."):
        return "ipc"
    return "uts" if name == "kernel.domainname" else ""
