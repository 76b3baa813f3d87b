"""The process of a container whose shim is dead and whose shim binary did not clean up after it.

It is found by `init.pid` of the bundle, as runc and crun write it. The number may be another process's by now, so only
one that has the container's root file system for its root is taken for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from pathlib import Path

from orlop.runtime.bundle import Bundle

_END_LIMIT = 5000
"""Milliseconds that a killed process may take to end."""


def end_orphan(bundle: Bundle) -> int:
    """Kills what runs as the init of `bundle`, and with it all in its pid namespace. The pid, 0 if there is none."""
    try:
        pid = int((bundle.path / "init.pid").read_text())
        process = os.pidfd_open(pid)
    except (OSError, ValueError):
        return 0
    try:
        # Looked at after it is held: what is signalled is what was looked at.
        if not _is_in(pid, bundle):
            return 0
        signal.pidfd_send_signal(process, signal.SIGKILL)
        poller = select.poll()
        poller.register(process, select.POLLIN)
        poller.poll(_END_LIMIT)
        return pid
    except OSError:
        return 0
    finally:
        os.close(process)


def _is_in(pid: int, bundle: Bundle) -> bool:
    """Whether the root of `pid` is that of the container, and not the host's."""
    found = os.stat(f"/proc/{pid}/root")
    return os.path.samestat(found, os.stat(_root(bundle))) and not os.path.samestat(found, os.stat("/"))


def _root(bundle: Bundle) -> Path:
    path = ""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        path = json.loads((bundle.path / "config.json").read_bytes()).get("root", {}).get("path", "")
    return bundle.path / (path or "rootfs")
