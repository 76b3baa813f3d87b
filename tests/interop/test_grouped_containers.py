"""One shim for a group of containers, which join one another's namespaces: a pod made by hand with the real `ctr`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from real_daemon import IMAGE, Daemon

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]

JOINED = {"network": "net", "ipc": "ipc", "uts": "uts"}


def pid_of(daemon: Daemon, name: str) -> int:
    rows = [line.split() for line in daemon.ctr("tasks", "ls").stdout.splitlines()]
    return next(int(row[1]) for row in rows if row[0] == name)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_two_containers_of_a_group_share_a_shim_and_the_namespaces_of_the_first(daemon: Daemon, name: str) -> None:
    group = ("--annotation", f"io.containerd.runc.v2.group={name}")
    first, second = f"{name}-first", f"{name}-second"
    try:
        daemon.ctr("run", "-d", *group, IMAGE, first, "sleep", "600")
        pid = pid_of(daemon, first)
        joins = [f"--with-ns={kind}:/proc/{pid}/ns/{file}" for kind, file in JOINED.items()]
        daemon.ctr("run", "-d", *group, *joins, IMAGE, second, "sh", "-c", "sleep 600 & wait")
        other = pid_of(daemon, second)
        assert parent_of(pid) == parent_of(other)
        for file in JOINED.values():
            assert os.readlink(f"/proc/{pid}/ns/{file}") == os.readlink(f"/proc/{other}/ns/{file}")
        assert os.readlink(f"/proc/{pid}/ns/pid") != os.readlink(f"/proc/{other}/ns/pid")
        daemon.ctr("tasks", "rm", "-f", first)
        assert daemon.ctr("tasks", "exec", "--exec-id", "e", second, "echo", "still here").stdout == "still here\n"
    finally:
        for container in (first, second):
            daemon.ctr("tasks", "rm", "-f", container, check=False)
            daemon.ctr("containers", "rm", container, check=False)
    assert not Path(f"/proc/{other}").exists()
