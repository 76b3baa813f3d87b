"""What a daemon's containers leave on a host: where this is empty, nothing has leaked."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from patience import patient
from real_daemon import Daemon

from orlop.runtime.shims import socket_path

CGROUPS = Path("/sys/fs/cgroup")


def traces(daemon: Daemon, ids: Iterable[str]) -> dict[str, list[str]]:
    """Shims, mounts, cgroups, files and sockets of the containers `ids`, in whatever state they are."""
    work, state, ids = str(daemon.work), daemon.work / "state", set(ids)
    tasks = "io.containerd.runtime.v2.task/*"
    files = [
        *state.glob(f"{tasks}/*"), *state.glob("runc/*/*"), *(daemon.work / "root").glob(f"{tasks}/*"),
    ]  # fmt: skip
    found = {
        "shims": [str(pid) for pid in shims_of(work)],
        "mounts": [line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {state}/" in line],
        "cgroups": [str(path) for path in _cgroups(daemon.namespace) if path.name in ids],
        "files": [str(path) for path in files if path.name.removeprefix(".") in ids],
        "sockets": [
            path for id in ids if os.path.exists(path := socket_path("", daemon.address, daemon.namespace, id))
        ],
    }
    return {kind: names for kind, names in found.items() if names}


def shims_of(work: str) -> list[int]:
    """Processes that work in a bundle below `work`; the fork server does not."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                directory = os.readlink(entry / "cwd")
            except OSError:
                continue
            if directory.startswith(work) and "io.containerd.runtime.v2.task" in directory:
                found.append(int(entry.name))
    return found


def descriptors(daemon: Daemon) -> list[str]:
    """What the daemon has open, but for its database, of which each thread that reads has a connection."""
    assert daemon.process is not None
    found = []
    for entry in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        try:
            found.append(os.readlink(entry))
        except FileNotFoundError:
            continue
    return sorted(link for link in found if ".db" not in link)


def await_no_traces(daemon: Daemon, ids: Iterable[str]) -> None:
    """Waits for a while: shims and cgroups go a little after the call that ends them."""
    ids = list(ids)
    deadline = time.monotonic() + patient(20)
    while left := traces(daemon, ids):
        assert time.monotonic() < deadline, f"left: {left}\n{daemon.log()}"
        time.sleep(0.05)


def _cgroups(namespace: str) -> list[Path]:
    """The directories of a namespace's containers in every hierarchy."""
    hierarchies = [CGROUPS, *(path for path in CGROUPS.iterdir() if path.is_dir())]
    return [path for hierarchy in hierarchies for path in (hierarchy / namespace).glob("*") if path.is_dir()]
