"""ttrpc, the protocol of shims: calls in ten-byte frames over one unix socket.

The rules are those of ttrpc's PROTOCOL.md. This package needs no gRPC, so that a shim stays small.
"""

from __future__ import annotations

from orlop.rpc.ttrpc.client import Client
from orlop.rpc.ttrpc.connection import TtrpcClosed
from orlop.rpc.ttrpc.server import Server

__all__ = ["Client", "Server", "TtrpcClosed"]
