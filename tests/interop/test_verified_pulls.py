"""Pulls that a verifier must allow: a real daemon with programs in its directory, and a real registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import busybox_image
import pytest
import real_registry
from real_daemon import Daemon, end_leftovers
from real_registry import Registry

pytestmark = [
    pytest.mark.root,
    pytest.mark.ctr,
    pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry"),
]

CONFIG = """
version = 4

[plugins."io.containerd.image-verifier.v1.bindir"]
  bin_dir = "{bin}"
  per_verifier_timeout = "500ms"
"""


@pytest.fixture
def work() -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix="orlop-", dir="/tmp"))
    yield work
    end_leftovers(work)
    shutil.rmtree(work, ignore_errors=True)


@pytest.fixture
def daemon(work: Path) -> Iterator[Daemon]:
    (work / "bin").mkdir()
    (work / "config.toml").write_text(CONFIG.format(bin=work / "bin"))
    daemon = Daemon(work, ["--config", str(work / "config.toml")])
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with real_registry.serve(tmp_path / "registry") as registry:
        yield registry


def orlop(daemon: Daemon, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    program = str(Path(sys.executable).parent / "orlop")
    environment = os.environ | {"DOCKER_CONFIG": str(daemon.work / "docker")}
    return subprocess.run(
        [program, "-a", daemon.address, *arguments], input=stdin, capture_output=True, timeout=60, env=environment
    )


def install(daemon: Daemon, name: str, script: str) -> None:
    program = daemon.work / "bin" / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_all_verifiers_must_allow_a_pull(daemon: Daemon, registry: Registry) -> None:
    reference = f"{registry.address}/app:1"
    assert orlop(daemon, "import", "-q", "--no-unpack", "-", stdin=busybox_image.oci_layout()).returncode == 0
    daemon.ctr("images", "push", "--plain-http", reference, busybox_image.NAME)
    digest = daemon.ctr("images", "ls", f"name=={busybox_image.NAME}").stdout.splitlines()[1].split()[2]
    assert orlop(daemon, "rmi", "busybox").returncode == 0

    install(daemon, "10-first", 'echo "$*" > "$0.called"; mv "$0.called" ' + str(daemon.work))
    install(daemon, "20-second", "echo not signed; exit 1")
    refused = orlop(daemon, "pull", reference)
    assert refused.returncode == 1
    assert refused.stderr.decode().splitlines()[-1] == (
        f"orlop: image verifier bindir blocked pull of {reference} with digest {digest} for reason: "
        "verifier 20-second rejected image (exit code 1): not signed"
    )
    called = (daemon.work / "10-first.called").read_text()
    assert called == (f"-name {reference} -digest {digest} -stdin-media-type application/vnd.oci.descriptor.v1+json\n")
    assert daemon.ctr("content", "ls", "-q").stdout == ""

    install(daemon, "20-second", "sleep 600")
    refused = orlop(daemon, "pull", reference)
    assert refused.returncode == 1
    assert b"image verifier bindir returned error" in refused.stderr
    assert b"not ended after 0.5 s" in refused.stderr

    install(daemon, "20-second", "echo signed")
    allowed = orlop(daemon, "pull", "-q", reference)
    assert (allowed.stdout.decode(), allowed.returncode) == (f"{reference}\n", 0), allowed.stderr
