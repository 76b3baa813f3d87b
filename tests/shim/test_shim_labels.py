"""Labels that the kernel would have to apply: what is refused, and what is left to the runtime."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orlop.errors import FailedPrecondition
from orlop.shim import labels


def refuse(tmp_path: Path, **spec: object) -> None:
    """With AppArmor, SELinux and the list of profiles being the files in `tmp_path`."""
    paths = {name: str(tmp_path / name) for name in ("apparmor", "profiles", "selinux")}
    labels.refuse_missing(json.dumps(spec).encode(), **paths)


def test_a_profile_needs_a_kernel_with_apparmor(tmp_path: Path) -> None:
    for content in (None, "N\n"):
        if content is not None:
            (tmp_path / "apparmor").write_text(content)
        with pytest.raises(FailedPrecondition, match='AppArmor profile "box": this kernel has no AppArmor'):
            refuse(tmp_path, process={"apparmorProfile": "box"})
    refuse(tmp_path, process={"apparmorProfile": "unconfined"})
    refuse(tmp_path, process={"apparmorProfile": ""})


def test_a_profile_has_to_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "apparmor").write_text("Y\n")
    refuse(tmp_path, process={"apparmorProfile": "box"})  # which ones are loaded cannot be read here
    (tmp_path / "profiles").write_text("/usr/bin/man (enforce)\nbox (complain)\nwith (paren) (enforce)\n")
    refuse(tmp_path, process={"apparmorProfile": "box"})
    refuse(tmp_path, process={"apparmorProfile": "with (paren)"})
    refuse(tmp_path, process={"apparmorProfile": ":other:box2"})
    for name in ("bo", "box (complain)", "box2"):
        with pytest.raises(FailedPrecondition, match="is not loaded"):
            refuse(tmp_path, process={"apparmorProfile": name})


@pytest.mark.parametrize(
    "spec", [{"process": {"selinuxLabel": "a:b:c:s0"}}, {"process": {}, "linux": {"mountLabel": "a:b:c:s0"}}]
)
def test_a_label_needs_a_kernel_with_selinux(tmp_path: Path, spec: dict[str, object]) -> None:
    with pytest.raises(FailedPrecondition, match='SELinux label "a:b:c:s0": this kernel has no SELinux'):
        refuse(tmp_path, **spec)
    (tmp_path / "selinux").mkdir()
    (tmp_path / "selinux/enforce").write_text("0")
    refuse(tmp_path, **spec)
    assert (tmp_path / "selinux/context").read_text() == "a:b:c:s0"


def test_a_label_has_to_be_one_of_the_policy(tmp_path: Path) -> None:
    (tmp_path / "selinux").mkdir()
    (tmp_path / "selinux/enforce").write_text("1")
    (tmp_path / "selinux/context").symlink_to("/proc/self/oom_score_adj")  # what is no number is invalid there
    with pytest.raises(FailedPrecondition, match='SELinux label "a:b:c:s0": the policy in force does not know it'):
        refuse(tmp_path, process={"selinuxLabel": "a:b:c:s0"})
    (tmp_path / "selinux/initial_contexts").mkdir()
    (tmp_path / "selinux/initial_contexts/kernel").write_text("kernel\0")  # as it is called without a policy
    with pytest.raises(FailedPrecondition, match='SELinux label "a:b:c:s0": no policy is loaded'):
        refuse(tmp_path, process={"selinuxLabel": "a:b:c:s0"})
    (tmp_path / "selinux/initial_contexts/kernel").write_text("system_u:system_r:kernel_t:s0\0")
    (tmp_path / "selinux/context").unlink()
    (tmp_path / "selinux/context").mkdir()  # which label is known cannot be asked here
    refuse(tmp_path, process={"selinuxLabel": "a:b:c:s0"})


@pytest.mark.parametrize(
    "config", [b"", b"[]", b'{"process": 1, "x": "selinuxLabel"}', b'"apparmorProfile"', b'{"selinuxLabel":']
)
def test_what_is_no_spec_is_left_to_the_runtime(config: bytes) -> None:
    labels.refuse_missing(config)
