"""The engine that is not the default one under the real `ctr`, and what the default one does without."""

from __future__ import annotations

import hashlib
import os
import select
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from real_daemon import IMAGE, Archives, Daemon
from real_registry import serve

pytestmark = [pytest.mark.root, pytest.mark.ctr]


@pytest.fixture(scope="module")
def grpcio(make_daemon: Callable[..., Daemon], tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    config = tmp_path_factory.mktemp("config") / "config.toml"
    config.write_text('version = 4\n[plugins."io.containerd.server.v1.grpc"]\nengine = "grpcio"\n')
    return make_daemon("--config", str(config))


def test_version_and_plugins_are_told(grpcio: Daemon) -> None:
    assert "Server:" in grpcio.ctr("version").stdout
    listed = grpcio.ctr("plugins", "ls").stdout
    assert "io.containerd.grpc.v1" in listed
    assert "error" not in listed.split()


def test_an_image_is_imported_unpacked_and_removed(grpcio: Daemon, archives: Archives) -> None:
    grpcio.ctr("images", "import", archives.oci)
    assert grpcio.ctr("images", "check", f"name=={IMAGE}").stdout.rstrip().endswith("true")
    (snapshot,) = [line for line in grpcio.ctr("snapshots", "ls").stdout.splitlines() if "Committed" in line]
    chain_id = snapshot.split()[0]
    grpcio.ctr("snapshots", "prepare", "work", chain_id)
    assert f"lowerdir={grpcio.work}/root" in grpcio.ctr("snapshots", "mounts", "/mnt", "work").stdout
    grpcio.ctr("snapshots", "rm", "work")
    grpcio.ctr("images", "rm", "--sync", IMAGE)
    assert not grpcio.ctr("content", "ls", "-q").stdout.split()
    assert "Committed" not in grpcio.ctr("snapshots", "ls").stdout


def test_content_larger_than_a_message_goes_in_and_comes_out(grpcio: Daemon, name: str) -> None:
    data = os.urandom(20 << 20)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    grpcio.ctr("content", "ingest", f"--expected-digest={digest}", f"--expected-size={len(data)}", name, stdin=data)
    got = subprocess.run(["ctr", "-a", grpcio.address, "content", "get", digest], capture_output=True, check=True)
    assert got.stdout == data
    grpcio.ctr("content", "rm", digest)


def test_events_are_told(grpcio: Daemon, name: str) -> None:
    with subprocess.Popen(["ctr", "-a", grpcio.address, "events"], stdout=subprocess.PIPE) as watcher:
        assert watcher.stdout is not None
        try:
            # Until one is seen: the subscription gives no other sign of being there.
            while not select.select([watcher.stdout], [], [], 0)[0]:
                grpcio.ctr("namespaces", "create", name)
                grpcio.ctr("namespaces", "rm", name)
            line = watcher.stdout.readline().decode()
        finally:
            watcher.kill()
    assert name in line
    assert "/namespaces/" in line


@pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry")
def test_imports_and_pulls_do_without_libraries_for_other_things(
    make_daemon: Callable[..., Daemon], archives: Archives, tmp_path: Path
) -> None:
    daemon = make_daemon()
    assert daemon.process is not None
    with serve(tmp_path / "registry") as registry:
        remote = f"{registry.address}/app/busybox:1"
        daemon.ctr("images", "import", archives.oci)
        daemon.ctr("images", "tag", IMAGE, remote)
        daemon.ctr("images", "push", "--plain-http", remote)
        daemon.ctr("images", "rm", "--sync", remote, IMAGE)
        daemon.ctr("images", "pull", "--plain-http", remote)
    mapped = Path(f"/proc/{daemon.process.pid}/maps").read_text()
    assert "apsw" in mapped
    assert "grpc" not in mapped
    assert "re2" not in mapped
    daemon.ctr("images", "ls", "name~=busybox")
    assert "re2" in Path(f"/proc/{daemon.process.pid}/maps").read_text()
