"""What the daemon asks of the fork server, and what it is answered: one datagram each, JSON of known fields."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Self

LIMIT = 1 << 17
"""Bytes of the longest message."""


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """A shim to be made; one that listens at `socket_path` already is told instead."""

    namespace: str
    id: str
    group: str
    bundle: str
    socket_path: str
    grpc_address: str = ""
    ttrpc_address: str = ""
    debug: bool = False
    environment: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, message: bytes) -> Self:
        """Raises ValueError if `message` is none."""
        known = _object(message, {field.name for field in fields(cls)})
        environment = known.pop("environment", ())
        if not isinstance(environment, list):
            raise ValueError("environment is no list")
        if not isinstance(known.pop("debug", False), bool) or any(not isinstance(v, str) for v in known.values()):
            raise ValueError("a field has another type")
        debug = json.loads(message).get("debug", False)
        try:
            return cls(**known, debug=debug, environment=tuple((str(key), str(value)) for key, value in environment))  # type: ignore[arg-type]
        except TypeError as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class ForkAnswer:
    """`pid` of the new shim, 0 if one listened there already; or `error`."""

    pid: int = 0
    error: str = ""

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, message: bytes) -> Self:
        """Raises ValueError if `message` is none."""
        known = _object(message, {"pid", "error"})
        return cls(pid=int(str(known.get("pid", 0))), error=str(known.get("error", "")))


def _object(message: bytes, names: set[str]) -> dict[str, object]:
    known = json.loads(message)
    if not isinstance(known, dict) or not known.keys() <= names:
        raise ValueError("not a message of the fork server")
    return known
