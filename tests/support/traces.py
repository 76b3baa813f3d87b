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
    """The shims that have a container or had one, of a daemon whose fork server's socket is below `work`."""
    own = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_shim(entry, work)]
    workers = {worker for shim in own for worker in _children(shim) if worker in own}
    spares = {shim for shim in own if any(_is_idle(worker) for worker in _children(shim) if worker in workers)}
    return [shim for shim in own if shim not in workers | spares]


def spares_of(forkserver: int) -> list[int]:
    """The shims of a fork server that nothing has been asked of."""
    return [
        shim
        for shim in _children(forkserver)
        if any(_is_shim(Path(f"/proc/{worker}")) and _is_idle(worker) for worker in _children(shim))
    ]


def _is_shim(process: Path, work: str = "") -> bool:
    try:
        return (process / "comm").read_text() == "orlop-shim\n" and work in (process / "cmdline").read_text()
    except OSError:
        return False


def _is_idle(worker: int) -> bool:
    """Whether a shim's worker has not gone to a bundle yet."""
    try:
        return os.readlink(f"/proc/{worker}/cwd") == "/"
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


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
