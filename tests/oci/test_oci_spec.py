from __future__ import annotations

import json

import pytest

from orlop.errors import InvalidArgument
from orlop.oci.spec import BindMount, ImageDefaults, SpecOptions, build, environment, typed
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
        memory=64 << 20, cpus=1.5, readonly_rootfs=True, host_network=True, terminal=True,
        mounts=(BindMount("/a", "/b", readonly=True),), pids=10,
    )  # fmt: skip
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
