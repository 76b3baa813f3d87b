"""The shim's command line, as daemons of several ages call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orlop.api.runtime.task.v3.shim_pb2 import DeleteResponse
from orlop.shim import caller, main
from orlop.shim.caller import ADDRESS_ALONE, Caller


@pytest.mark.parametrize(
    ("most", "sends_parameters", "version"),
    [
        (None, False, ADDRESS_ALONE),  # containerd 1.6
        ("2", False, 2),  # 1.7, which refuses 3
        ("3", False, 3),
        ("9", False, 3),
        ("1", False, 2),
        ("many", False, 3),
        ("2", True, 3),  # 2.4 says 2 and takes 3
        (None, True, 3),
    ],
)
def test_a_version_is_one_that_the_daemon_takes(
    monkeypatch: pytest.MonkeyPatch, most: str | None, sends_parameters: bool, version: int
) -> None:
    monkeypatch.delenv("MAX_SHIM_VERSION", raising=False)
    if most is not None:
        monkeypatch.setenv("MAX_SHIM_VERSION", most)
    assert Caller("", sends_parameters=sends_parameters).version() == version


@pytest.mark.parametrize(
    ("does", "version"),
    [
        ("echo containerd github.com/containerd/containerd/v2 v2.2.0 0123abc", 3),
        ("echo containerd github.com/k3s-io/containerd v2.0.4-k3s2 0123abc", 3),
        ("echo containerd github.com/containerd/containerd v1.7.29 0123abc", 2),
        ("echo containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-1", 2),
        ("echo something else 2.0", 2),
        ("exit 1", 2),
        ("exec sleep 1000", 2),
    ],
)
def test_a_daemon_that_says_2_is_asked_which_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, does: str, version: int
) -> None:
    monkeypatch.setenv("MAX_SHIM_VERSION", "2")
    monkeypatch.setattr(caller, "_LIMIT", 0.2 if "sleep" in does else 30)
    daemon = tmp_path / "containerd"
    daemon.write_text(f'#!/bin/sh\n[ "$*" = --version ] || exit 2\n{does}\n')
    daemon.chmod(0o755)
    assert Caller(str(daemon), sends_parameters=False).version() == version


def test_the_answer_is_json_for_daemons_that_know_of_versions() -> None:
    assert main._answer("/run/s/x", ADDRESS_ALONE) == "unix:///run/s/x"
    assert json.loads(main._answer("/run/s/x", 3)) == {"version": 3, "address": "unix:///run/s/x", "protocol": "ttrpc"}


@pytest.mark.root
@pytest.mark.parametrize(
    ("noted", "called"),
    [
        (None, ""),
        ("", ""),
        ("[]", ""),
        ('{"root": 7}', ""),
        ('{"root": "/nowhere"}', "--root /nowhere/ns --log {bundle}/log.json --log-format json delete --force one\n"),
    ],
)
def test_delete_calls_a_runtime_only_if_this_bundle_s_shim_may_have_called_it(
    tmp_path: Path, noted: str | None, called: str
) -> None:
    """Without its options it would be asked for the container of that name of whoever else uses it."""
    runtime, bundle = tmp_path / "runc", tmp_path / "one"
    runtime.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    runtime.chmod(0o755)
    bundle.mkdir()
    if noted is not None:
        (bundle / "options.json").write_text(noted)
    done = subprocess.run(
        [sys.executable, "-m", "orlop.shim.main", "-namespace", "ns", "-id", "one", "delete"],
        cwd=bundle,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert DeleteResponse.FromString(done.stdout).exit_status == 137
    calls = tmp_path / "calls"
    assert (calls.read_text() if calls.exists() else "") == called.format(bundle=bundle)
