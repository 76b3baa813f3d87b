"""`orlop image verify` and `orlop image repair`, against a daemon whose files are damaged under it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from real_daemon import IMAGE

from orlop.snapshots import probe

Orlop = Any
pytestmark = [pytest.mark.root, pytest.mark.ctr]


@pytest.fixture
def image(orlop: Orlop) -> Iterator[str]:
    if refusal := probe.refusal(orlop.daemon.work):
        pytest.skip(refusal)
    orlop("import", orlop.archive)
    yield IMAGE
    orlop("rmi", IMAGE)


def blobs(orlop: Orlop) -> list[Path]:
    """Largest first: the layer, then documents."""
    found = (orlop.daemon.work / "root/io.containerd.content.v1.content/blobs/sha256").iterdir()
    return sorted(found, key=lambda path: -path.stat().st_size)


def tar(orlop: Orlop) -> Path:
    (found,) = (orlop.daemon.work / "root/io.containerd.snapshotter.v1.overlayfs/layers").glob("*/tar")
    return found


def flip(path: Path) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def test_a_whole_image_is_said_to_be_so(orlop: Orlop, image: str) -> None:
    assert ": whole (" in orlop("image", "verify", image).stdout


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_a_damaged_layer_is_named_and_made_again_from_its_blob(
    orlop: Orlop, image: str, damage: Callable[[Path], None]
) -> None:
    damage(tar(orlop))
    said = orlop("image", "verify", image, status=1).stdout
    assert said.startswith(f"{image}: layer sha256:")
    assert str(tar(orlop) if damage is flip else "tar is missing") in said
    assert orlop("image", "repair", image).stdout.splitlines()[-1].startswith(f"{image}: whole (")
    assert orlop.daemon.ctr("snapshots", "ls").stdout.count("sha256:") == 1
    assert "whole" in orlop("image", "verify", image).stdout


def test_a_damaged_index_is_found_too(orlop: Orlop, image: str) -> None:
    flip(tar(orlop).with_name("index"))
    assert "index is damaged" in orlop("image", "verify", image, status=1).stdout
    assert "whole" in orlop("image", "repair", image).stdout


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        with socket.socket() as peer:
            if peer.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, "the registry does not answer"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    if not shutil.which("docker-registry"):
        pytest.skip("docker-registry is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "registry.yml"
    config.write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path}/registry}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _wait_for(port)
    yield f"localhost:{port}"
    process.terminate()
    process.wait(20)


def test_a_damaged_blob_is_fetched_again_and_nothing_else(orlop: Orlop, image: str, registry: str) -> None:
    name = f"{registry}/busybox:1"
    orlop.daemon.ctr("images", "push", "--plain-http", name, image)
    orlop("image", "tag", image, name)
    untouched = {path.name: path.stat().st_ino for path in blobs(orlop)[1:]}
    damaged = blobs(orlop)[0]
    flip(damaged)
    said = orlop("image", "verify", name, status=1).stdout
    assert said == f"{name}: blob sha256:{damaged.name}: its bytes have another digest\n"
    assert orlop("image", "repair", name).stdout.splitlines()[-1].startswith(f"{name}: whole (")
    assert {path.name: path.stat().st_ino for path in blobs(orlop)[1:]} == untouched
    assert "whole" in orlop("image", "verify", image).stdout
    flip(blobs(orlop)[1])
    assert orlop("image", "repair", name).stdout.splitlines()[-1].startswith(f"{name}: whole (")
    orlop("rmi", name)
