"""Paths of field masks: `labels`, or `labels.<key>` where the key is all that follows, dots and slashes included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

V = TypeVar("V")


def key_of(path: str, field: str) -> str | None:
    """The key that `path` names in the map `field`; None if it names another field, or the whole map."""
    prefix = f"{field}."
    return path[len(prefix) :] if path.startswith(prefix) else None


def masked(path: str, field: str, old: Mapping[str, V], new: Mapping[str, V], unset: V) -> dict[str, V] | None:
    """The map `field` after an update of `path` from `old` to `new`; None if `path` names another field.

    A key that `new` lacks becomes `unset`.
    """
    if path == field:
        return dict(new)
    key = key_of(path, field)
    return None if key is None else {**old, key: new.get(key, unset)}
