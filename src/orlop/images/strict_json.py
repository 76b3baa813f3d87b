"""JSON as image tools read it, with nothing left to interpretation.

Those tools are written in Go, which takes a key in any case for the field it names, lets the last of several win, and
takes null for nothing. A key in another case is taken so here too; one that comes twice, in whatever case, is refused,
because two readers could see two documents. Keys of free maps (labels, annotations) stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from orlop.errors import InvalidArgument

T = TypeVar("T")

CONTAINERS_LIMIT = 1_000_000
"""Lists and objects in a document: they take much more memory than the two bytes they are written with."""


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document; `what` names it in errors."""

    what: str
    value: Any

    @classmethod
    def parse(cls, data: bytes, what: str) -> Document:
        """Raises InvalidArgument for what is no JSON, has a key twice in an object, or is nested too deeply."""
        if data.count(b"{") + data.count(b"[") > CONTAINERS_LIMIT:
            raise InvalidArgument(f"{what}: more than {CONTAINERS_LIMIT} lists and objects")
        try:
            value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
            if b"\\u" in data:
                msgspec.json.encode(value)  # half a surrogate pair is no text
        except RecursionError:
            raise InvalidArgument(f"{what}: nested too deeply") from None
        except ValueError as error:
            raise InvalidArgument(f"{what}: {error}") from None
        return cls(what, value)

    @property
    def keys(self) -> frozenset[str]:
        """The keys that say something, in lower case."""
        if not isinstance(self.value, dict):
            return frozenset()
        return frozenset(key.casefold() for key, value in self.value.items() if value is not None)

    def as_type(self, type_: type[T]) -> T:
        """The document as a struct, or a list of them. Raises InvalidArgument where it is something else."""
        try:
            return msgspec.convert(_shaped(self.value, _kind(type_), self.what), type_)
        except msgspec.ValidationError as error:
            raise InvalidArgument(f"{self.what}: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {key!r} comes twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _shaped(value: Any, kind: inspect.Type, what: str) -> Any:
    """`value` with the spelling of keys that `kind` has, without nulls and what `kind` does not know."""
    if isinstance(kind, inspect.UnionType):
        return value if value is None else _shaped(value, kind.types[0], what)
    if isinstance(kind, inspect.ListType):
        if value is None:
            return []
        return [_shaped(item, kind.item_type, what) for item in value] if isinstance(value, list) else value
    if not (isinstance(kind, inspect.StructType) and isinstance(value, dict)):
        return value
    fields = _fields(kind.cls)
    seen: dict[str, str] = {}
    shaped: dict[str, Any] = {}
    for key, inner in value.items():
        other = seen.setdefault(key.casefold(), key)
        if other is not key:
            raise InvalidArgument(f"{what}: key {key!r} comes twice (as {other!r})")
        field = fields.get(key.casefold())
        if field is not None and (inner is not None or isinstance(field.type, inspect.ListType)):
            shaped[field.encode_name] = _shaped(inner, field.type, what)
    return shaped


_kinds: dict[Any, inspect.Type] = {}


def _kind(type_: Any) -> inspect.Type:
    """What a type is made of: looked through once, as that takes a third of a millisecond for a manifest."""
    if type_ not in _kinds:
        _kinds[type_] = inspect.type_info(type_)
    return _kinds[type_]


@cache
def _fields(cls: type) -> Mapping[str, inspect.Field]:
    """The fields of a struct by their names in lower case."""
    kind = _kind(cls)
    assert isinstance(kind, inspect.StructType)
    return {field.encode_name.casefold(): field for field in kind.fields}
