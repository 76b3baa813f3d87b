"""Transports: gRPC and ttrpc servers and clients, and the mapping of errors to statuses."""

from __future__ import annotations

import os

# Without this gRPC's handlers run, and complain, at every fork; no child of ours uses gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
