"""Which OCI runtime a host's containers get, and which one a container is better off with."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orlop.runtime.crun import Crun
from orlop.runtime.host import OciRuntime, _why_not_apart, detect
from orlop.shim import hybrid

VERSION = (
    "crun version 1.8.1\ncommit: f8a0\nrundir: /run/crun\nspec: 1.0.0\n+SYSTEMD +SELINUX +CAP +SECCOMP +EBPF +YAJL\n"
)
OLD, NEW = Crun((1, 8, 1)), Crun((1, 24))
PLAIN: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {"args": ["true"]},
    "mounts": [{"destination": "/dev", "type": "tmpfs"}],
    "linux": {"namespaces": [{"type": "mount"}]},
}


def host(
    *,
    programs: Sequence[str] = ("crun", "runc"),
    hybrid: bool = False,
    why_not_apart: str = "",
    criu: str = "criu cannot run",
    version: str = VERSION,
    choice: str = "auto",
    rootless: bool = False,
) -> OciRuntime:
    def ask(command: Sequence[str]) -> str:
        if command[0] == "criu" and criu:
            raise ValueError(criu)
        return version

    find = {name: f"/usr/bin/{name}" for name in programs}.get
    return detect(choice, find, ask, lambda: hybrid, lambda: why_not_apart, lambda: rootless)


def spec(path: str = "", value: Any = None, **fields: Any) -> bytes:
    """The plain document, with `value` at `path`."""
    document = json.loads(json.dumps(PLAIN | fields))
    at = document
    *parents, last = path.split(".")
    for name in parents:
        at = at.setdefault(name, {})
    if last:
        at[last] = value
    return json.dumps(document).encode()


def test_crun_is_taken_where_it_works_and_its_refusal_has_a_reason() -> None:
    assert host() == OciRuntime("crun", "", OLD, "runc")
    assert host(programs=["crun"]) == OciRuntime("crun", "", OLD, "")
    assert host(programs=["runc"]) == OciRuntime("runc", "crun is not installed")
    assert host(version="something else") == OciRuntime("runc", "crun --version: prints no version of crun")
    assert host(rootless=True).name == "runc"


def test_on_a_hybrid_host_crun_is_taken_if_it_can_have_mounts_of_its_own() -> None:
    assert host(hybrid=True) == OciRuntime("crun", "", Crun((1, 8, 1), is_apart=True), "runc")
    assert host(hybrid=True, why_not_apart="hybrid") == OciRuntime("runc", "hybrid")


def test_a_host_where_checkpoints_work_keeps_them() -> None:
    with_criu = ("crun", "runc", "criu")
    assert host(programs=with_criu).name == "crun"
    assert "CRIU" in host(programs=with_criu, criu="").reason
    assert host(programs=with_criu, criu="", version=VERSION.replace("+CAP", "+CAP +CRIU")).name == "crun"


@pytest.mark.parametrize("choice", ["runc", "/opt/bin/youki", "crun"])
def test_a_runtime_that_is_configured_is_taken_whatever_is_found(choice: str) -> None:
    found = host(choice=choice, hybrid=True, why_not_apart="hybrid")
    assert (found.name, found.for_spec(spec(ociVersion="9.9"))) == (choice, choice)


@pytest.mark.parametrize(
    ("version", "name"),
    [
        *(("1.0.2", "crun"), ("1.0.2-dev", "crun"), ("1.1.0", "crun"), ("1.2.0", "crun"), ("1.3.0", "crun")),
        *(("1.4.0", "runc"), ("2.0.0", "runc"), ("x", "crun")),
    ],
)
def test_a_spec_of_a_version_whose_additions_are_known_goes_to_crun(version: str, name: str) -> None:
    assert OciRuntime("crun", "", OLD, "runc").for_spec(spec(ociVersion=version)) == name


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("process.scheduler", {"policy": "SCHED_BATCH"}),
        ("process.ioPriority", {"class": "IOPRIO_CLASS_IDLE", "priority": 0}),
        ("process.execCPUAffinity", {"initial": "0"}),
        ("linux.memoryPolicy", {"mode": "MPOL_BIND", "nodes": "0"}),
        ("linux.netDevices", {"eth0": {}}),
        ("linux.intelRdt", {"schemata": ["L3:0=f"]}),
        ("linux.intelRdt", {"enableMonitoring": True}),
        ("linux.resources", {"cpu": {"burst": 1}}),
        ("mounts", [*PLAIN["mounts"], {"destination": "/data", "options": ["rbind", "ridmap"]}]),
        ("mounts", [*PLAIN["mounts"], {"destination": "/data", "uidMappings": [{"size": 1}]}]),
    ],
)
def test_what_an_older_crun_would_pass_over_goes_to_runc(path: str, value: Any) -> None:
    asked = spec(path, value, ociVersion="1.3.0")
    assert OciRuntime("crun", "", OLD, "runc").for_spec(asked) == "runc"
    assert OciRuntime("crun", "", OLD, "runc").as_taken(asked, "crun") is asked
    assert OciRuntime("crun", "", NEW, "runc").for_spec(asked) == "crun"
    assert OciRuntime("crun", "", OLD).for_spec(asked) == "crun"  # there is no other


@pytest.mark.parametrize(("path", "value"), [("linux.netDevices", {}), ("process.scheduler", None), ("linux", None)])
def test_what_is_there_and_empty_is_no_addition(path: str, value: Any) -> None:
    assert OciRuntime("crun", "", OLD, "runc").for_spec(spec(path, value)) == "crun"


def test_a_version_that_crun_refuses_is_lowered_and_nothing_else_changes() -> None:
    odd = b'{ "x": 1.50e3, "ociVersion" : "1.3.0","mounts":[{"destination":"/dev"}], "big":18446744073709551615}'
    runtime = OciRuntime("crun", "", OLD, "runc")
    assert runtime.as_taken(odd, "crun") == odd.replace(b"1.3.0", b"1.1.0").replace(b" ", b"")
    assert runtime.as_taken(odd, "runc") is odd
    assert OciRuntime("crun", "", NEW, "runc").as_taken(odd, "crun") is odd
    assert OciRuntime("runc").as_taken(odd, "runc") is odd
    for other in (spec(ociVersion="1.1.0"), spec(ociVersion="1.0.2"), b"no JSON", b"{}"):
        assert runtime.as_taken(other, "crun") is other


def test_a_restore_goes_to_runc_where_crun_has_no_criu() -> None:
    assert OciRuntime("crun", "", OLD, "runc").for_spec(spec(), restores=True) == "runc"
    assert OciRuntime("crun", "", Crun((1, 8, 1), has_criu=True), "runc").for_spec(spec(), restores=True) == "crun"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("linux.namespaces", [{"type": "pid"}]),
        ("hooks", {"createRuntime": [{"path": "/bin/true"}]}),
        ("hooks", {"prestart": [{"path": "/bin/true"}]}),
    ],
)
def test_what_needs_the_hosts_mount_namespace_does_not_go_to_a_crun_that_has_its_own(path: str, value: Any) -> None:
    apart = Crun((1, 8, 1), is_apart=True)
    assert OciRuntime("crun", "", apart, "runc").for_spec(spec(path, value)) == "runc"
    assert OciRuntime("crun", "", OLD, "runc").for_spec(spec(path, value)) == "crun"
    assert OciRuntime("crun", "", apart, "runc").for_spec(spec("hooks", {"poststop": [{"path": "/x"}]})) == "crun"


def test_a_container_without_a_mount_at_dev_goes_to_runc() -> None:
    assert OciRuntime("crun", "", OLD, "runc").for_spec(spec(mounts=[])) == "runc"


@pytest.mark.root
@pytest.mark.skipif(not hybrid.has_controllers(), reason="the cgroups of this host are not hybrid with controllers")
def test_the_host_is_as_before_after_the_probe() -> None:
    here, namespace = Path.cwd(), os.readlink("/proc/thread-self/ns/mnt")
    assert _why_not_apart() == ""
    assert (Path.cwd(), os.readlink("/proc/thread-self/ns/mnt")) == (here, namespace)
    assert hybrid.has_controllers()
