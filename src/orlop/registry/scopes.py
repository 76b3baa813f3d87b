"""Scopes of bearer tokens: `type:name:action,action` (distribution's token scope documentation)."""

from __future__ import annotations

from collections.abc import Iterable

_LIMIT = 100


def repository_scope(path: str, *actions: str) -> str:
    return f"repository:{path}:{','.join(actions)}"


def merge(scopes: Iterable[str]) -> tuple[str, ...]:
    """The scopes, sorted, those of one resource as one."""
    actions: dict[str, set[str]] = {}
    for scope in scopes:
        for part in scope.split():
            resource, _, verbs = part.rpartition(":")
            if resource and len(actions) < _LIMIT:
                actions.setdefault(resource, set()).update(filter(None, verbs.split(",")))
    return tuple(f"{resource}:{','.join(sorted(verbs))}" for resource, verbs in sorted(actions.items()))
