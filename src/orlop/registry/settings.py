"""How the daemon deals with all registries: patience, parallelism, limits. Seconds and bytes."""

from __future__ import annotations

from dataclasses import dataclass

HOST_DIRS = ("/etc/containerd/certs.d", "/etc/docker/certs.d")
"""Where administrators keep `<host>/hosts.toml`, if nothing else is said."""


@dataclass(frozen=True, slots=True)
class Settings:
    host_dirs: tuple[str, ...] = ()
    """Directories of `<host>/hosts.toml`, the first that has the host counts; an operation may name its own."""
    credentials_file: str = ""
    """A docker `config.json` for operations that bring no credentials; read at each use."""
    attempts: int = 5
    """How often a request is sent before its host has failed; 1 for never again."""
    retry_delay: float = 0.2
    """Before the second attempt; doubles from then on."""
    retry_delay_limit: float = 10
    retry_after_limit: float = 300
    """The longest wait that a registry may ask for (`Retry-After`)."""
    dial_timeout: float = 30
    stall_timeout: float = 60
    """A connection that brings no byte for so long is given up."""
    ranges_from: int = 16 << 20
    """Blobs that lack so many bytes are fetched in ranges."""
    range_size: int = 2 << 20
    """So much is in memory of each connection but the one that is read; far hosts lose a round trip for each."""
    ranges: int = 4
    """Connections for one blob at most; 1 for no ranges."""
    extra_ranges: int = 8
    """Connections of all blobs together, beside the first of each."""
    single_rate: int = 64 << 20
    """A connection that brings so many bytes a second needs none beside it: they would only cost."""
    bandwidth: int = 0
    """Bytes a second that all fetches together may take; 0 for no limit."""
    upload_chunk: int = 0
    """Blobs above it are uploaded in chunks of this size; 0 for in one request, as most registries like it best."""
    resume_chunk: int = 16 << 20
    """The chunks in which an upload goes on that broke off."""
    user_agent: str = "orlop"
