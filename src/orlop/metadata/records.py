"""What the stores share: columns of labels and typed values, and the namespace row that a first write makes."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import apsw
import msgspec

from orlop.core import filters
from orlop.core.labels import stored
from orlop.core.typed import Typed
from orlop.errors import DataLoss, InvalidArgument

T = TypeVar("T")

_log = logging.getLogger(__name__)
_labels = msgspec.json.Decoder(dict[str, str])
_extensions = msgspec.json.Decoder(dict[str, tuple[str, str]])
_encoder = msgspec.json.Encoder(order="deterministic")


def ensure_namespace(connection: apsw.Connection, name: str) -> None:
    """Makes the namespace come to be, where it is not there yet."""
    connection.execute("INSERT INTO namespaces (name) VALUES (?) ON CONFLICT (name) DO NOTHING", (name,))


def dump_labels(labels: Mapping[str, str]) -> str:
    """Labels or annotations as a column; those with an empty value are left out."""
    return _encoder.encode(stored(labels)).decode()


def load_labels(text: str) -> dict[str, str]:
    """Raises DataLoss where the column is no JSON object of strings."""
    try:
        return _labels.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DataLoss(f"labels column: {error}") from error


def dump_extensions(extensions: Mapping[str, Typed]) -> str:
    return _encoder.encode(
        {key: (typed.type_url, base64.b64encode(typed.value).decode()) for key, typed in extensions.items()}
    ).decode()


def load_extensions(text: str) -> dict[str, Typed]:
    """Raises DataLoss where the column is not what `dump_extensions` writes."""
    try:
        return {
            key: Typed(url, base64.b64decode(value, validate=True))
            for key, (url, value) in _extensions.decode(text).items()
        }
    except (msgspec.MsgspecError, RecursionError, binascii.Error) as error:
        raise DataLoss(f"extensions column: {error}") from error


def typed_columns(typed: Typed | None) -> tuple[str | None, bytes | None]:
    """The two columns of a typed value: NULL where it is absent."""
    return (None, None) if typed is None else (typed.type_url, typed.value)


def typed_of(url: str | None, value: bytes | None) -> Typed | None:
    return None if url is None else Typed(url, value or b"")


def parse_filters(texts: Sequence[str]) -> filters.Filter:
    """As `filters.parse`, refusing in the words of containerd's stores, which name the kind of error twice."""
    try:
        return filters.parse(texts)
    except InvalidArgument as error:
        raise InvalidArgument(str(error)) from error


def each_readable(rows: Iterable[tuple[Any, ...]], load: Callable[[tuple[Any, ...]], T], what: str) -> Iterator[T]:
    """`load` of each row. A row that is damaged is left out with a warning: it spoils itself and no list."""
    for row in rows:
        try:
            yield load(row)
        except DataLoss as error:
            _log.warning("%s %r: %s", what, row[0], error)
