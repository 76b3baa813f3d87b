"""Images of more layers than an overlay takes, through the real `ctr`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import busybox_image
import pytest
from real_daemon import Daemon

from orlop.snapshots import probe

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]

NAME = "docker.io/library/deep:1"


def write_image(path: Path, count: int) -> None:
    """A docker-save archive of busybox with `count` layers, each of one file."""
    tars = [busybox_image.layer(), *(archive({f"layer{n}": b"%d\n" % n}) for n in range(1, count))]
    diff_ids = [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    layers = {f"{n}/layer.tar": tar for n, tar in enumerate(tars)}
    manifest = [{"Config": "config.json", "RepoTags": [NAME], "Layers": list(layers)}]
    documents = {"config.json": json.dumps(config).encode(), "manifest.json": json.dumps(manifest).encode()}
    path.write_bytes(archive(layers | documents))


def archive(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def test_an_image_of_520_layers_runs(make_daemon: Callable[..., Daemon], tmp_path: Path, name: str) -> None:
    daemon = make_daemon()
    if refusal := probe.refusal(daemon.work):
        pytest.skip(refusal)
    write_image(tmp_path / "image.tar", 520)
    daemon.ctr("images", "import", str(tmp_path / "image.tar"))
    done = daemon.ctr("run", "--rm", NAME, name, "sh", "-c", "ls / | grep -c ^layer; cat /layer1 /layer519")
    assert done.stdout.split() == ["519", "1", "519"]
    daemon.ctr("images", "rm", "--sync", NAME)
    root = daemon.work / "root/io.containerd.snapshotter.v1.overlayfs"
    assert not list((root / "merged").iterdir())
    assert not list((root / "layers").iterdir())
