from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.oci.devices import Device, DeviceRule
from orlop.oci.limits import INFINITE, Limit
from orlop.oci.mounts import BindMount, Tmpfs
from orlop.oci.namespaces import IdMapping, Namespaces
from orlop.oci.resources import Resources
from orlop.oci.security import Security
from orlop.oci.spec import ImageDefaults, SpecOptions, build, environment, typed
from orlop.oci.user import User

IMAGE = ImageDefaults(entrypoint=("/run",), command=("serve",), environment=("A=1", "PATH=/x"), directory="/srv")


def test_a_container_runs_what_its_image_says() -> None:
    process = build("ns", "id", IMAGE, User(1000, 1000, (29,)), SpecOptions())["process"]
    assert process["args"] == ["/run", "serve"]
    assert process["cwd"] == "/srv"
    assert process["env"] == ["PATH=/x", "A=1"]
    assert process["user"] == {"uid": 1000, "gid": 1000, "additionalGids": [29, 1000]}


def test_arguments_of_the_caller_take_the_place_of_the_command() -> None:
    process = build("ns", "id", IMAGE, User(), SpecOptions(args=("debug",)))["process"]
    assert process["args"] == ["/run", "debug"]


def test_no_capability_can_be_inherited() -> None:
    capabilities = build("ns", "id", IMAGE, User(), SpecOptions())["process"]["capabilities"]
    assert "inheritable" not in capabilities
    assert "ambient" not in capabilities
    assert "CAP_SYS_ADMIN" not in capabilities["bounding"]


def test_power_meters_are_masked_and_the_kernels_settings_read_only() -> None:
    linux = build("ns", "id", IMAGE, User(), SpecOptions())["linux"]
    assert "/sys/devices/virtual/powercap" in linux["maskedPaths"]
    assert "/proc/sys" in linux["readonlyPaths"]
    assert linux["cgroupsPath"] == "/ns/id"


def test_options_shape_the_spec() -> None:
    options = SpecOptions(
        resources=Resources(memory=64 << 20, cpus=1.5, pids=10),
        namespaces=Namespaces(network="host"),
        readonly_rootfs=True,
        terminal=True,
        mounts=(BindMount("/a", "/b", readonly=True),),
    )
    spec = build("ns", "id", IMAGE, User(), options)
    resources = spec["linux"]["resources"]
    assert resources["memory"] == {"limit": 64 << 20}
    assert resources["cpu"] == {"quota": 150_000, "period": 100_000}
    assert resources["pids"] == {"limit": 10}
    assert spec["root"]["readonly"]
    assert {"type": "network"} not in spec["linux"]["namespaces"]
    assert "TERM=xterm" in spec["process"]["env"]
    assert spec["mounts"][-1]["options"] == ["rbind", "rprivate", "ro"]


def test_specs_of_two_containers_share_nothing() -> None:
    first, second = (build("ns", "id", IMAGE, User(), SpecOptions(environment=(f"S={n}",))) for n in range(2))
    first["process"]["env"].append("X=1")
    first["process"]["capabilities"]["bounding"].clear()
    first["mounts"][0]["options"].append("rw")
    assert "X=1" not in second["process"]["env"]
    assert second["process"]["capabilities"]["bounding"]
    assert "rw" not in second["mounts"][0]["options"]
    assert json.loads(typed(second).value) == second


def test_a_variable_without_a_value_is_removed() -> None:
    assert environment(["A=1", "B=2"], ["A", "B=3"])[1:] == ["B=3"]
    with pytest.raises(InvalidArgument):
        environment([], ["=x"])


def test_a_container_without_a_command_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="names a command"):
        build("ns", "id", ImageDefaults(), User(), SpecOptions())


def spec_of(**options: Any) -> dict[str, Any]:
    return build("ns", "id", IMAGE, User(), SpecOptions(**options))


def test_a_user_namespace_maps_users_and_groups() -> None:
    mapping = IdMapping.parse("0:100000:65536")
    linux = spec_of(namespaces=Namespaces(uid_mappings=[mapping], gid_mappings=[mapping]))["linux"]
    assert {"type": "user"} in linux["namespaces"]
    assert linux["uidMappings"] == linux["gidMappings"] == [{"containerID": 0, "hostID": 100000, "size": 65536}]
    with pytest.raises(InvalidArgument, match="both users and groups"):
        spec_of(namespaces=Namespaces(uid_mappings=[mapping]))
    with pytest.raises(InvalidArgument, match="mappings"):
        spec_of(namespaces=Namespaces(user="private"))


@pytest.mark.parametrize(
    "text", ["", "0:1", "0:1:0", "-1:0:1", "0:4294967295:1", "0:1:2:3", "a:0:1", "0 :1:1", "\u0661:0:1"]
)
def test_mappings_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        IdMapping.parse(text)


def test_namespaces_are_private_joined_or_the_hosts() -> None:
    linux = spec_of(namespaces=Namespaces(network="/proc/1/ns/net", pid="host", cgroup="private"))["linux"]
    found = {entry["type"]: entry.get("path") for entry in linux["namespaces"]}
    assert found == {"ipc": None, "uts": None, "mount": None, "network": "/proc/1/ns/net", "cgroup": None}
    with pytest.raises(InvalidArgument, match='network namespace "x"'):
        spec_of(namespaces=Namespaces(network="x"))


def test_terminals_belong_to_their_group_only_where_it_is_mapped() -> None:
    one = [IdMapping(0, 1000, 1)]
    spec = spec_of(namespaces=Namespaces(uid_mappings=one, gid_mappings=one))
    assert "gid=5" not in next(mount for mount in spec["mounts"] if mount["type"] == "devpts")["options"]


def test_a_privileged_container_is_not_filtered_or_masked() -> None:
    spec = spec_of(privileged=True)
    assert not {"seccomp", "maskedPaths", "readonlyPaths"} & spec["linux"].keys()
    assert spec["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert any(device["path"] == "/dev/null" for device in spec["linux"]["devices"])
    assert "rw" in next(mount for mount in spec["mounts"] if mount["destination"] == "/sys")["options"]


def test_ambient_capabilities_are_those_that_the_container_has() -> None:
    capabilities = spec_of(ambient=["net_bind_service"])["process"]["capabilities"]
    assert capabilities["ambient"] == capabilities["inheritable"] == ["CAP_NET_BIND_SERVICE"]
    with pytest.raises(InvalidArgument, match="CAP_NET_ADMIN"):
        spec_of(ambient=["NET_ADMIN"])


def test_devices_are_made_and_allowed() -> None:
    spec = spec_of(devices=[Device.parse("/dev/null:/dev/nothing:r")], device_rules=[DeviceRule.parse("c 10:* rw")])
    assert [(node["path"], node["type"], node["major"], node["minor"]) for node in spec["linux"]["devices"]] == [
        ("/dev/nothing", "c", 1, 3)
    ]
    rules = spec["linux"]["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "r"} in rules
    assert rules[-1] == {"allow": True, "type": "c", "access": "rw", "major": 10}
    with pytest.raises(NotFound, match="/dev/no-such"):
        spec_of(devices=[Device.parse("/dev/no-such")])
    with pytest.raises(InvalidArgument, match="no device node"):
        spec_of(devices=[Device.parse("/etc/passwd")])
    for text in ("null", "/dev/null:x", "/dev/null:/x:q", ""):
        with pytest.raises(InvalidArgument):
            Device.parse(text)


def test_limits_are_read_as_ulimit_has_them() -> None:
    assert Limit.parse("core=-1") == Limit("core", INFINITE, INFINITE)
    rlimits = spec_of(limits=[Limit.parse("nofile=10:20"), Limit.parse("nproc=5")])["process"]["rlimits"]
    assert rlimits == [
        {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}, {"type": "RLIMIT_NPROC", "soft": 5, "hard": 5},
    ]  # fmt: skip
    for text in ("nofile", "nofile=", "nofile=2:1", "files=1", "nofile=0x1", "nofile= 1", "nofile=1:2:3"):
        with pytest.raises(InvalidArgument):
            Limit.parse(text)


@pytest.mark.parametrize(
    "setting",
    [
        {"kernel.core_pattern": "|/x"}, {"vm.swappiness": "1"}, {"net.ipv4.ip_forward": "1\nkernel.x=1"},
        {"net/../kernel.core_pattern": "x"}, {"kernel.shmmax": ""}, {"net": "1"}, {"net.\u0661": "1"},
    ],
)  # fmt: skip
def test_settings_of_the_host_cannot_be_changed(setting: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="sysctl"):
        spec_of(sysctls=setting)


def test_settings_need_a_namespace_of_their_own() -> None:
    setting = {"net.ipv4.ip_forward": "1", "kernel.shmmax": "4096"}
    assert spec_of(sysctls=setting)["linux"]["sysctl"] == setting
    with pytest.raises(InvalidArgument, match="network namespace is the host's"):
        spec_of(sysctls=setting, namespaces=Namespaces(network="host"))


def test_mounts_keep_the_propagation_that_is_asked_for() -> None:
    spec = spec_of(mounts=[BindMount("/a", "/b", options=["rshared"]), Tmpfs("/c", ["size=1m"])])
    assert spec["linux"]["rootfsPropagation"] == "rshared"
    assert [mount["options"] for mount in spec["mounts"][-2:]] == [
        ["rbind", "rw", "rshared"], ["nosuid", "nodev", "size=1m"],
    ]  # fmt: skip
    with pytest.raises(InvalidArgument, match="not absolute"):
        spec_of(mounts=[Tmpfs("c")])


def test_labels_that_the_kernel_cannot_apply_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="has no AppArmor"):
        Security(apparmor="x").refuse_missing(apparmor=tmp_path / "enabled")
    (tmp_path / "enabled").write_text("Y\n")
    Security(apparmor="x", selinux_label="").refuse_missing(apparmor=tmp_path / "enabled")
    with pytest.raises(FailedPrecondition, match="has no SELinux"):
        Security(selinux_label="a:b:c").refuse_missing(selinux=tmp_path / "enforce")


def test_limits_that_contradict_each_other_are_refused() -> None:
    for resources in (
        Resources(memory_swap=1), Resources(memory=10, memory_swap=5), Resources(memory=10, memory_reservation=20),
        Resources(cpus=-1), Resources(cpus=0.001), Resources(blkio_weight=5), Resources(memory=-1),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument):
            resources.document()
    assert Resources(memory=10, memory_swap=-1).document() == {"memory": {"limit": 10, "swap": -1}}
    assert Resources(unified={"memory.high": "max"}).document() == {"unified": {"memory.high": "max"}}


def test_host_names_need_a_namespace_of_their_own() -> None:
    assert spec_of(hostname="box")["hostname"] == "box"
    with pytest.raises(InvalidArgument, match="uts namespace"):
        spec_of(hostname="box", namespaces=Namespaces(uts="host"))


def test_without_privileges_there_is_no_cgroup_and_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orlop.oci.spec.in_user_namespace", lambda: True)
    assert "cgroupsPath" not in spec_of()["linux"]
    assert spec_of(cgroup_parent="/user.slice/mine")["linux"]["cgroupsPath"] == "/user.slice/mine/id"
    with pytest.raises(FailedPrecondition, match="limits of memory, pids need a cgroup"):
        spec_of(resources=Resources(memory=1 << 20, pids=5))
