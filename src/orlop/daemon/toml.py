"""TOML, written. Reading is `tomllib`'s; this prints what configuration needs: tables, scalars and lists."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_ESCAPES = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def dumps(document: Mapping[str, Any]) -> str:
    """`document` as TOML. Entries that are None are left out. Raises TypeError for what TOML cannot hold."""
    return "\n".join(_table(document, ())) + "\n"


def key(name: str) -> str:
    """`name` as a TOML key, quoted where it must be."""
    return name if _BARE.fullmatch(name) else string(name)


def string(text: str) -> str:
    """`text` as a TOML string: literal where that is possible, for the sake of readers."""
    if "'" not in text and all(character.isprintable() for character in text):
        return f"'{text}'"
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    indent = "  " * max(0, len(path) - 1)
    inner = "  " * len(path)
    if path:
        yield f"{indent}[{'.'.join(key(part) for part in path)}]"
    for name, value in table.items():
        if value is not None and not isinstance(value, Mapping):
            yield f"{inner}{key(name)} = {_value(value)}"
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield ""
            yield from _table(value, (*path, name))


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            if math.isnan(value) or math.isinf(value):
                return str(value)
            return repr(value)
        case str():
            return string(value)
        case list() | tuple():
            return "[" + ", ".join(_value(item) for item in value) + "]"
        case Mapping():
            return "{" + ", ".join(f"{key(name)} = {_value(item)}" for name, item in value.items()) + "}"
    raise TypeError(f"TOML cannot hold {type(value).__name__} {value!r}")
