"""Orlop: a container runtime daemon, wire-compatible with containerd."""

from __future__ import annotations

__version__ = "0.1.0"
