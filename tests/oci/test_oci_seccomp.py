"""Seccomp: the default filter as a simulated kernel would apply it, and profiles of files."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from orlop.errors import InvalidArgument
from orlop.oci import capabilities, seccomp, syscalls

_COMPARE = {
    "SCMP_CMP_EQ": lambda value, entry: value == entry["value"],
    "SCMP_CMP_LT": lambda value, entry: value < entry["value"],
    "SCMP_CMP_GT": lambda value, entry: value > entry["value"],
    "SCMP_CMP_MASKED_EQ": lambda value, entry: value & entry["value"] == entry.get("valueTwo", 0),
}


def answer(profile: dict[str, Any], name: str, *arguments: int) -> str:
    """What the filter does with a call: the first rule that matches."""
    for rule in profile["syscalls"]:
        conditions = rule.get("args", ())
        if name in rule["names"] and all(
            _COMPARE[entry["op"]](arguments[entry["index"]], entry) for entry in conditions
        ):
            return f"{rule['action']} {rule['errnoRet']}" if "errnoRet" in rule else str(rule["action"])
    return str(profile["defaultAction"])


ALLOWED, REFUSED = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"


def test_the_default_filter_refuses_what_reaches_the_host() -> None:
    profile = seccomp.default(capabilities.DEFAULT, machine="x86_64", kernel="6.1.0")
    for name in (
        "mount", "umount2", "unshare", "setns", "bpf", "keyctl", "add_key", "io_uring_setup", "kexec_load", "reboot",
        "init_module", "perf_event_open", "open_by_handle_at", "userfaultfd", "swapon", "syslog", "move_pages", "acct",
    ):  # fmt: skip
        assert answer(profile, name) == REFUSED, name
    for name in ("read", "openat2", "clone", "chroot", "ptrace", "arch_prctl", "landlock_create_ruleset"):
        assert answer(profile, name, 0) == ALLOWED, name
    assert answer(profile, "clone", 0x10000000) == REFUSED  # CLONE_NEWUSER
    assert answer(profile, "clone3", 0) == "SCMP_ACT_ERRNO 38"
    assert answer(profile, "personality", 0) == ALLOWED
    assert answer(profile, "personality", 0x0040000) == REFUSED  # ADDR_NO_RANDOMIZE


@pytest.mark.parametrize(
    ("family", "allowed"),
    [(1, True), (2, True), (16, True), (37, True), (38, False), (39, True), (40, False), (41, True), (44, True)],
)
def test_sockets_of_kernel_ciphers_and_virtual_machines_are_refused(family: int, allowed: bool) -> None:
    profile = seccomp.default(capabilities.DEFAULT)
    assert answer(profile, "socket", family) == (ALLOWED if allowed else REFUSED)
    assert (int(socket.AF_ALG), int(socket.AF_VSOCK)) == (38, 40)


def test_capabilities_open_their_calls_and_no_others() -> None:
    for name, calls in syscalls.BY_CAPABILITY.items():
        profile = seccomp.default([name], machine="x86_64", kernel="6.1.0")
        for call in calls:
            assert answer(profile, call, 0x10000000) == ALLOWED, (name, call)
    assert answer(seccomp.default(["CAP_SYS_ADMIN"]), "clone", 0x10000000) == ALLOWED
    assert answer(seccomp.default(["CAP_NET_ADMIN"]), "mount") == REFUSED


def test_the_filter_is_that_of_the_machine() -> None:
    assert seccomp.default((), machine="aarch64", kernel="6.1")["architectures"] == [
        "SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64",
    ]  # fmt: skip
    assert answer(seccomp.default((), machine="s390x", kernel="6.1"), "clone", 0, 0x10000000) == REFUSED
    assert answer(seccomp.default((), machine="aarch64", kernel="6.1"), "modify_ldt") == REFUSED
    assert answer(seccomp.default((), machine="x86_64", kernel="4.4.0"), "ptrace") == REFUSED


def docker_profile(**changes: Any) -> bytes:
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["stime"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
                {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
                {
                    "names": ["clone3"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 38,
                    "excludes": {"caps": ["CAP_SYS_ADMIN"]},
                },
            ],
        }
        | changes
    ).encode()  # fmt: skip


def test_conditions_of_a_profile_are_kept() -> None:
    profile = seccomp.read(docker_profile(), capabilities.DEFAULT, machine="x86_64", kernel="6.1.0")
    assert profile["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert answer(profile, "read") == answer(profile, "ptrace") == ALLOWED
    assert answer(profile, "mount") == answer(profile, "stime") == REFUSED
    assert answer(profile, "clone3") == "SCMP_ACT_ERRNO 38"
    admin = seccomp.read(docker_profile(), ["CAP_SYS_ADMIN"], machine="x86_64", kernel="4.4")
    assert answer(admin, "mount") == ALLOWED
    assert answer(admin, "ptrace") == REFUSED


@pytest.mark.parametrize(
    "document",
    [
        b"", b"{}", b"[]", b'{"defaultAction":"SCMP_ACT_PERMIT"}', b'{"defaultAction":"SCMP_ACT_ERRNO","syscals":[]}',
        docker_profile(syscalls=[{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"users": ["x"]}}]),
        docker_profile(syscalls=[{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["vax"]}}]),
        docker_profile(syscalls=[{"action": "SCMP_ACT_ALLOW"}]),
        docker_profile(syscalls=[{"names": ["x"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "new"}}]),
        docker_profile(architectures=["SCMP_ARCH_X86"]),
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_profiles_that_are_not_understood_are_refused(document: bytes) -> None:
    with pytest.raises(InvalidArgument, match=r"seccomp profile|kernel version"):
        seccomp.read(document, ())


def test_capabilities_are_added_and_dropped_by_name() -> None:
    assert "CAP_NET_ADMIN" in capabilities.chosen(add=["net_admin"])
    assert "CAP_CHOWN" not in capabilities.chosen(drop=["CAP_CHOWN"])
    assert capabilities.chosen(add=["KILL"], drop=["all"]) == ["CAP_KILL"]
    assert set(capabilities.chosen(add=["ALL"], drop=["SYS_ADMIN"])) == set(capabilities.available()) - {
        "CAP_SYS_ADMIN"
    }
    for name in ("", "CAP_", "SUPER", "chown ", "\u212aILL"):
        with pytest.raises(InvalidArgument, match="capability"):
            capabilities.chosen(add=[name])
