"""The labels that the collector reads, as edges between objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from orlop.core import duration, rfc3339
from orlop.errors import InvalidArgument

EXPIRE = "containerd.io/gc.expire"
FLAT = "containerd.io/gc.flat"
ROOT = "containerd.io/gc.root"
USED_AT = "containerd.io/gc.cond.value-usedat"

_PREFIX = "containerd.io/gc."
_REF = "containerd.io/gc.ref."
_BREF = "containerd.io/gc.bref."
_CONDITION = "containerd.io/gc.cond.snapshot"


class Kind(StrEnum):
    LEASE = "lease"
    IMAGE = "image"
    CONTENT = "content"
    SNAPSHOT = "snapshot"
    INGEST = "ingest"
    CONTAINER = "container"
    SANDBOX = "sandbox"
    MOUNT = "mount"


class Node(NamedTuple):
    """An object that may be reachable. `key` is its name; of a snapshot, `<snapshotter>/<name>`."""

    kind: Kind
    namespace: str
    key: str


class Condition(NamedTuple):
    """The snapshot `node` is kept while its age of use compares so: `older` than `limit` nanoseconds, or younger."""

    node: Node
    older: bool
    limit: int

    def holds(self, used_at: int, now: int) -> bool:
        age = now - used_at
        return age > self.limit if self.older else age < self.limit


@dataclass(slots=True)
class References:
    """What the labels of one object say."""

    keeps: list[Node] = field(default_factory=list)
    kept_by: list[Node] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)
    is_root: bool = False


def of_labels(namespace: str, labels: Mapping[str, str]) -> References:
    """Reads the labels of an object in `namespace`. Values are not checked: a dangling reference is no error."""
    found = References()
    for key, value in labels.items():
        if not key.startswith(_PREFIX) or not value:
            continue
        if key.startswith(_REF):
            node = _target(namespace, key[len(_REF) :], value, (Kind.CONTENT, Kind.IMAGE, Kind.MOUNT))
            if node is not None:
                found.keeps.append(node)
        elif key.startswith(_BREF):
            node = _target(namespace, key[len(_BREF) :], value, (Kind.CONTENT, Kind.IMAGE, Kind.CONTAINER))
            if node is not None:
                found.kept_by.append(node)
        elif key.startswith(ROOT):
            found.is_root = True
        elif key.startswith(_CONDITION):
            found.conditions.extend(_conditions(namespace, key[len(_CONDITION) :], value))
    return found


def moment(labels: Mapping[str, str], label: str) -> int | None:
    """The time that `label` holds, in nanoseconds since 1970; None if it is missing or no time."""
    text = labels.get(label)
    if text is None:
        return None
    try:
        return rfc3339.parse(text)
    except ValueError:
        return None


def _target(namespace: str, name: str, value: str, kinds: tuple[Kind, ...]) -> Node | None:
    if name.startswith("snapshot."):
        snapshotter = name.removeprefix("snapshot.").partition("/")[0]
        return Node(Kind.SNAPSHOT, namespace, f"{snapshotter}/{value}")
    for kind in kinds:
        # What may follow is a name for people: "content", "content.config", "content/x", but not "contentx".
        if name.startswith(kind) and name[len(kind) : len(kind) + 1] in ("", ".", "/"):
            return Node(kind, namespace, value)
    return None


def _conditions(namespace: str, name: str, value: str) -> list[Condition]:
    snapshotter = name.lstrip("./").partition("/")[0]
    conditions, bar, key = value.partition("|")
    found = []
    for text in conditions.split(",") if bar else ():
        subject, operator, limit = text[:6], text[6:7], text[7:]
        if subject != "usedat" or operator not in ("<", ">"):
            continue
        try:
            nanoseconds = duration.parse(limit)
        except InvalidArgument:
            continue
        found.append(Condition(Node(Kind.SNAPSHOT, namespace, f"{snapshotter}/{key}"), operator == ">", nanoseconds))
    return found
