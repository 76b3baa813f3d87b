"""ttrpc, the protocol of shims: calls in ten-byte frames over one unix socket.

The rules are those of ttrpc's PROTOCOL.md. This package needs no gRPC. Its ends run on asyncio and are imported when
they are asked for: a shim uses the frames alone, with ends of its own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.rpc.ttrpc.client import Client
    from orlop.rpc.ttrpc.connection import TtrpcClosed
    from orlop.rpc.ttrpc.server import Server

__all__ = ["Client", "Server", "TtrpcClosed"]

_HOMES = {"Client": "client", "Server": "server", "TtrpcClosed": "connection"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
