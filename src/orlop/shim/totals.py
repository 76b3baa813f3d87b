"""The metrics of several control groups as those of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

_MOST = (1 << 64) - 1
_KEYS = {"op", "device", "major", "minor", "pagesize", "name"}
"""What says of which device, say, an entry of a list is."""


def sum_of(parts: Sequence[Message]) -> Message:
    """Counts and limits added up: the whole has no limit if a part has none.

    Shares of time (pressure) are no counts and are left out. All parts are of one type.
    """
    whole = type(parts[0])()
    for part in parts:
        _add(whole, part)
    return whole


def _add(whole: Message, part: Message) -> None:
    for field, value in part.ListFields():
        if field.is_repeated:
            _add_entries(getattr(whole, field.name), value)
        elif field.message_type is not None:
            getattr(whole, field.name).SetInParent()
            _add(getattr(whole, field.name), value)
        elif field.name not in _KEYS and field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
            most = _MOST if field.cpp_type == field.CPPTYPE_UINT64 else (1 << 32) - 1
            setattr(whole, field.name, min(getattr(whole, field.name) + value, most))


def _add_entries(whole: Any, parts: Any) -> None:
    """Adds each entry to the one of the same keys; a bare number to that of the same place (one a processor)."""
    for index, part in enumerate(parts):
        if isinstance(part, int):
            if index == len(whole):
                whole.append(0)
            whole[index] += part
            continue
        same = next((entry for entry in whole if _keys(entry) == _keys(part)), None)
        if same is None:
            whole.add().CopyFrom(part)
        else:
            _add(same, part)


def _keys(entry: Message) -> list[tuple[str, Any]]:
    return [(field.name, value) for field, value in entry.ListFields() if field.name in _KEYS]
