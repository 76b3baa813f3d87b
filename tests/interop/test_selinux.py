"""SELinux labels of processes and mounts: applied where the kernel's policy knows them, clearly refused where not."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from real_daemon import IMAGE, Daemon

from orlop.api.types.runc.options.oci_pb2 import Options
from orlop.client import connect, run
from orlop.core.task import NewTask
from orlop.core.wire import common

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]

POLICY = Path("/sys/fs/selinux")
KERNEL = POLICY / "initial_contexts/kernel"
WHY = (
    "this kernel has no SELinux, or it is off"
    if not KERNEL.exists()
    else "no policy is loaded"
    if KERNEL.read_text().rstrip("\0") == "kernel"
    else "the policy in force does not know it"
)


def known(*contexts: str) -> str:
    """The first of these that the policy in force knows; empty if it knows none."""
    if "no policy" in WHY:  # then the kernel takes any
        return ""
    for context in contexts:
        try:
            (POLICY / "context").write_text(context)
        except OSError:
            continue
        return context
    return ""


PROCESS = known(*(f"system_u:system_r:{type_}:s0:c1,c2" for type_ in ("container_t", "svirt_lxc_net_t", "svirt_t")))
MOUNT = known(*(f"system_u:object_r:{type_}:s0:c1,c2" for type_ in ("container_file_t", "svirt_image_t")))


def create(daemon: Daemon, name: str, process: str, mount: str) -> None:
    """A container without a task whose spec has these labels, for which `ctr` has no options."""
    daemon.ctr("containers", "create", IMAGE, name, "sleep", "600")
    asyncio.run(_add_labels(daemon, name, process, mount))


async def _add_labels(daemon: Daemon, name: str, process: str, mount: str) -> None:
    async with connect(daemon.address) as client:
        container = await client.containers.get(client.scope, name)
        assert container.spec is not None
        spec = json.loads(container.spec.value)
        spec["process"]["selinuxLabel"] = process
        spec["linux"]["mountLabel"] = mount
        labelled = dataclasses.replace(container.spec, value=json.dumps(spec).encode())
        await client.containers.update(client.scope, dataclasses.replace(container, spec=labelled), ["spec"])


async def start(daemon: Daemon, name: str, runtime: str) -> int:
    async with connect(daemon.address) as client:
        rootfs = await run.rootfs(client, await client.containers.get(client.scope, name))
        options = common.pack(Options(binary_name=runtime))
        pid = await client.tasks.create(client.scope, NewTask(name, rootfs, options=options))
        await client.tasks.start(client.scope, name)
        return pid


@pytest.mark.parametrize("which", ["process", "mount"])
def test_a_label_that_cannot_be_applied_is_refused_by_name(daemon: Daemon, name: str, which: str) -> None:
    label = "system_u:system_r:orlop_nothing_t:s0"
    create(daemon, name, *((label, "") if which == "process" else ("", label)))
    done = daemon.ctr("tasks", "start", "-d", name, check=False)
    assert done.returncode
    assert f'SELinux label "{label}": {WHY}' in done.stderr
    assert name not in daemon.ctr("tasks", "ls").stdout
    daemon.ctr("containers", "rm", name)


@pytest.mark.skipif(not (PROCESS and MOUNT), reason="the kernel has no SELinux, or its policy no label for containers")
@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_container_its_execs_and_its_mounts_have_their_labels(daemon: Daemon, name: str, runtime: str) -> None:
    if shutil.which(runtime) is None:
        pytest.skip(f"needs {runtime}")
    create(daemon, name, PROCESS, MOUNT)
    try:
        pid = asyncio.run(start(daemon, name, runtime))
        assert Path(f"/proc/{pid}/attr/current").read_text().rstrip("\0") == PROCESS
        done = daemon.ctr("tasks", "exec", "--exec-id", "e", name, "cat", "/proc/self/attr/current")
        assert done.stdout.rstrip("\0") == PROCESS
        mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
        assert f"context={MOUNT}" in next(mount[-1] for mount in mounts if mount[4] == "/dev/shm").replace('"', "")
    finally:
        daemon.ctr("tasks", "rm", "-f", name, check=False)
        daemon.ctr("containers", "rm", name, check=False)
