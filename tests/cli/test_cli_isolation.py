"""The flags of `orlop run` that keep a container apart, with a real runtime: seen from inside, and from the host."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]
Orlop = Any


@pytest.fixture(autouse=True)
def passable(orlop: Orlop) -> None:
    """A container's users go through the daemon's directories to its root: the test's own must let them pass."""
    orlop.daemon.work.chmod(0o711)


def sh(orlop: Orlop, name: str, script: str, *options: str | Path, **how: Any) -> str:
    """The output of a shell script in a container that goes when it ends."""
    return str(orlop("run", "--rm", *options, "busybox", name, "sh", "-c", script, **how).stdout)


def refused(orlop: Orlop, name: str, *options: str | Path) -> str:
    """What is said of a container that cannot be, of which nothing is left."""
    done = orlop("run", "--rm", *options, "busybox", name, "true", status=1)
    assert orlop.is_gone(name)
    return str(done.stderr)


def test_a_container_is_filtered_and_cannot_gain_privileges(orlop: Orlop, name: str) -> None:
    status = sh(orlop, name, "cat /proc/self/status")
    found = dict(re.findall(r"^(\w+):\s*(\S+)", status, re.MULTILINE))
    assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", "1")
    assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0
    assert found["CapEff"] == found["CapBnd"] == f"{0xA80425FB:016x}"


def test_options_of_security_lift_what_they_name(orlop: Orlop, name: str, tmp_path: Path) -> None:
    status = sh(
        orlop, name, "grep -E 'Seccomp:|NoNew' /proc/self/status; mkdir /tmp/x; mkdir /tmp/y",
        "--security-opt", "seccomp=unconfined", "--security-opt", "no-new-privileges=false",
    )  # fmt: skip
    assert status.split() == ["NoNewPrivs:", "0", "Seccomp:", "0"]
    profile = tmp_path / "profile.json"
    profile.write_text(
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}'
    )
    out = sh(orlop, name, "mkdir /tmp/x 2>&1; true", "--security-opt", f"seccomp={profile}")
    assert "Operation not permitted" in out
    profile.write_text('{"defaultAction":"SCMP_ACT_ALLOW","rules":[]}')
    assert "seccomp profile" in refused(orlop, name, "--security-opt", f"seccomp={profile}")
    assert "unknown" in refused(orlop, name, "--security-opt", "seccomp")


def test_labels_that_this_kernel_cannot_apply_are_refused(orlop: Orlop, name: str) -> None:
    if not Path("/sys/module/apparmor").exists():
        assert "this kernel has no AppArmor" in refused(orlop, name, "--security-opt", "apparmor=default")
    if not Path("/sys/fs/selinux").exists():
        label = "label=system_u:system_r:container_t:s0"
        assert "this kernel has no SELinux" in refused(orlop, name, "--security-opt", label)


def test_capabilities_are_added_dropped_and_ambient(orlop: Orlop, name: str) -> None:
    def bounding(*options: str) -> int:
        return int(sh(orlop, name, "grep CapBnd /proc/self/status", *options).split()[1], 16)

    assert bounding("--cap-add", "sys_time") == 0xA80425FB | 1 << 25
    assert bounding("--cap-drop", "ALL", "--cap-add", "CHOWN") == 1
    out = sh(orlop, name, "grep CapEff /proc/self/status", "-u", "1000:1000", "--cap-ambient", "NET_BIND_SERVICE")
    assert int(out.split()[1], 16) == 1 << 10
    assert 'capability "SUPER" is unknown' in refused(orlop, name, "--cap-add", "SUPER")


def test_a_privileged_container_has_everything(orlop: Orlop, name: str) -> None:
    script = (
        "grep -E 'CapBnd|Seccomp:' /proc/self/status; test -w /proc/sys/kernel/hostname && echo rw; ls /dev | wc -l"
    )
    found = sh(orlop, name, script, "--privileged").split()
    host = re.search(r"CapBnd:\s*(\w+)", Path("/proc/self/status").read_text())
    assert host is not None
    assert found[:5] == ["CapBnd:", host.group(1), "Seccomp:", "0", "rw"]
    assert int(found[5]) > int(sh(orlop, name, "ls /dev | wc -l"))


def test_what_tells_of_the_host_is_masked_or_read_only(orlop: Orlop, name: str) -> None:
    script = (
        "for path in kcore keys latency_stats timer_list sched_debug; do"
        " test -e /proc/$path && head -c 1 /proc/$path | wc -c; done;"
        "for path in acpi asound scsi; do test -e /proc/$path && ls /proc/$path | wc -l; done;"
        "ls /sys/firmware | wc -l; cd /sys/devices/virtual; test -e powercap && ls powercap | wc -l;"
        "for path in bus fs irq sys sysrq-trigger; do"
        ' test -e /proc/$path && grep -c " /proc/$path .* ro," /proc/mounts; done'
    )
    counts = [int(word) for word in sh(orlop, name, script + "; true").split()]
    read_only = sum(Path("/proc", path).exists() for path in ("bus", "fs", "irq", "sys", "sysrq-trigger"))
    assert counts[-read_only:] == [1] * read_only
    assert not any(counts[:-read_only])


@pytest.mark.parametrize(("kind", "flag"), [("net", "--net"), ("pid", "--pid"), ("ipc", "--ipc"), ("uts", "--uts"),
                                            ("cgroup", "--cgroupns")])  # fmt: skip
def test_a_namespace_is_its_own_joined_or_the_hosts(orlop: Orlop, container: str, kind: str, flag: str) -> None:
    name = f"{container}-more"
    host = os.readlink(f"/proc/self/ns/{kind}")
    link = f"readlink /proc/self/ns/{kind}"
    assert sh(orlop, name, link, flag, "host").strip() == host
    assert sh(orlop, name, link, flag, "private").strip() != host
    others = orlop("exec", container, "readlink", f"/proc/self/ns/{kind}").stdout
    assert sh(orlop, name, link, flag, f"container:{container}") == others
    assert sh(orlop, name, link, flag, f"ns:/proc/{os.getpid()}/ns/{kind}").strip() == host


def test_a_namespace_that_is_not_there_cannot_be_joined(orlop: Orlop, name: str) -> None:
    assert "not host, private" in refused(orlop, name, "--net", "bridge")
    assert "not found" in refused(orlop, name, "--pid", "container:nobody")


def test_users_of_a_container_are_others_outside(orlop: Orlop, name: str) -> None:
    script = "cat /proc/self/uid_map; id -u; stat -c '%u:%g' / /bin/busybox /etc/passwd; touch /new /etc/new; sleep 600"
    orlop("run", "-d", "--uidmap", "0:200000:65536", "busybox", name, "sh", "-c", f"({script}) > /tmp/out; sync")
    try:
        pid = int(orlop("ps").stdout.split(name)[1].split()[2])
        root = Path(f"/proc/{pid}/root")
        while not (root / "etc/new").exists():
            assert name in orlop("ps", "-q").stdout.split()
        assert (root / "tmp/out").read_text().split() == ["0", "200000", "65536", "0", *["0:0"] * 3]
        for path in ("", "bin/busybox", "new", "etc/new"):
            assert (root / path).lstat().st_uid == 200000, path
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"^Uid:\s+200000\s", status, re.MULTILINE)
        # an exec is in the same namespace
        assert orlop("exec", name, "id", "-u").stdout == "0\n"
        bundle = next(Path(orlop.daemon.work, "state").glob(f"*/*/{name}"))
        assert (bundle.stat().st_gid, bundle.stat().st_mode & 0o777) == (200000, 0o710)
    finally:
        orlop("rm", "-f", name)
    assert orlop.is_gone(name)


def test_users_and_groups_are_mapped_differently(orlop: Orlop, name: str) -> None:
    maps = "--uidmap=0:200000:1000", "--gidmap=0:300000:500", "--gidmap=500:400000:500"
    out = sh(orlop, name, "cat /proc/self/uid_map /proc/self/gid_map", *maps)
    assert out.split() == ["0", "200000", "1000", "0", "300000", "500", "500", "400000", "500"]
    assert sh(orlop, name, "ip link | grep -c LOOPBACK; readlink /proc/self/ns/net", *maps, "--net", "host").split()[
        -1
    ] == os.readlink("/proc/self/ns/net")
    assert "no" not in sh(orlop, name, "test -c /dev/null && echo yes || echo no", *maps)
    assert "not of the form" in refused(orlop, name, "--uidmap", "0:1")


def test_a_snapshotter_that_cannot_map_ids_gets_a_copy_with_other_owners(orlop: Orlop, name: str) -> None:
    orlop.daemon.ctr("namespaces", "label", "default", "containerd.io/defaults/snapshotter=native")
    try:
        script = "cat /proc/self/uid_map; stat -c '%u:%g' / /bin/busybox /etc/passwd; touch /etc/new && echo written"
        for _ in range(2):  # the copy is made once
            out = sh(orlop, name, script, "--uidmap", "0:200000:65536")
            assert out.split() == ["0", "200000", "65536", *["0:0"] * 3, "written"]
        remapped = [line for line in orlop.daemon.ctr("snapshots", "--snapshotter", "native", "ls").stdout.splitlines()
                    if re.search(r"sha256:[0-9a-f]{64}-[0-9a-f]{16} ", line)]  # fmt: skip
        assert len(remapped) <= 1
    finally:
        orlop.daemon.ctr("namespaces", "label", "default", "containerd.io/defaults/snapshotter=")


def test_a_mount_with_mapped_ids_needs_a_runtime_that_can(orlop: Orlop, name: str, tmp_path: Path) -> None:
    features = subprocess.run(["runc", "features"], capture_output=True, text=True).stdout
    if '"mountExtensions"' in features:
        pytest.skip("this runc can")
    said = refused(orlop, name, "--uidmap", "0:200000:65536", "-v", f"{tmp_path}:/data:idmap")
    assert 'mount "/data" with mapped ids: the runtime' in said
    assert "does not support it" in said


def test_groups_of_a_process(orlop: Orlop, name: str) -> None:
    groups = ("--group-add", "29", "--group-add", "daemon")
    assert set(sh(orlop, name, "id -G", "-u", "1000:2000", *groups).split()) >= {"2000", "29"}
    assert 'group "nobody-has-it"' in refused(orlop, name, "--group-add", "nobody-has-it")
    assert "out of range" in refused(orlop, name, "--group-add", "4294967296")


def test_limits_and_settings_hold(orlop: Orlop, name: str) -> None:
    options = ("--ulimit", "nofile=200:300", "--ulimit", "core=0", "--sysctl", "net.ipv4.ip_forward=1",
               "--sysctl", "kernel.shmmax=4096", "--hostname", "box", "--shm-size", "1m")  # fmt: skip
    script = (
        "ulimit -n; ulimit -Hn; ulimit -c; cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax; hostname;"
        "df -k /dev/shm | tail -1"
    )
    assert sh(orlop, name, script, *options).split()[:8] == ["200", "300", "0", "1", "4096", "box", "shm", "1024"]
    assert "would change the whole host" in refused(orlop, name, "--sysctl", "kernel.core_pattern=x")


def test_devices_can_be_used_that_are_given(orlop: Orlop, name: str) -> None:
    script = "head -c 1 /dev/kmsg-too >/dev/null 2>&1 && echo read; echo x > /dev/kmsg-too 2>/dev/null || echo kept"
    assert sh(orlop, name, script, "--device", "/dev/zero:/dev/kmsg-too:r") in ("read\nkept\n", "read\n")
    make = "mknod /tmp/full c 1 11; head -c 1 /tmp/full 2>&1 | wc -c; echo 1 > /tmp/full 2>/dev/null || echo denied"
    assert "denied" in sh(orlop, name, make)
    assert "no-such" in refused(orlop, name, "--device", "/dev/no-such")


def test_mounts_of_each_kind(orlop: Orlop, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")
    tmp_path.chmod(0o755)
    options = (f"--mount=type=bind,src={tmp_path},dst=/host,readonly", "--mount=type=tmpfs,dst=/mem,tmpfs-size=64k",
               "--tmpfs=/more:size=1m,mode=700")  # fmt: skip
    script = "cat /host/file; touch /host/x 2>/dev/null || echo kept; grep -E ' (/mem|/more) ' /proc/mounts"
    lines = sh(orlop, name, script, *options).splitlines()
    assert lines[:2] == ["from the host", "kept"]
    assert "size=64k" in lines[2]
    assert "size=1024k" in lines[3]
    assert "mode=700" in lines[3]
    assert "is neither bind nor tmpfs" in refused(orlop, name, "--mount", "type=volume,src=a,dst=/b")
    assert "'bind-nonrecursive=1' is not understood" in refused(
        orlop, name, "--mount", f"type=bind,src={tmp_path},dst=/b,bind-nonrecursive=1"
    )


def test_limits_reach_the_cgroup(orlop: Orlop, name: str) -> None:
    orlop(
        "run", "-d", "-m", "64m", "--memory-reservation", "32m", "--cpus", "0.5", "-c", "512", "--pids-limit", "50",
        "--cpuset-cpus", "0", "--cgroup-parent", f"/{name}-parent", "--oom-score-adj", "500",
        "busybox", name, "sleep", "600",
    )  # fmt: skip
    try:
        pid = int(orlop("ps").stdout.split(name)[1].split()[2])
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n"
        found = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
        if "memory" not in found:
            assert found[""].endswith(f"/{name}-parent/{name}")
            return
        for controller, file, value in (
            ("memory", "memory.limit_in_bytes", 64 << 20),
            ("memory", "memory.soft_limit_in_bytes", 32 << 20),
            ("cpu", "cpu.cfs_quota_us", 50_000),
            ("cpu", "cpu.shares", 512),
            ("pids", "pids.max", 50),
            ("cpuset", "cpuset.cpus", 0),
        ):
            group = found[controller]
            assert group.endswith(f"/{name}-parent/{name}")
            assert int(Path(f"/sys/fs/cgroup/{controller}{group}", file).read_text()) == value
    finally:
        orlop("rm", "-f", name)
        for parent in Path("/sys/fs/cgroup").glob(f"*/{name}-parent"):
            parent.rmdir()
