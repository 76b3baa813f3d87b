"""Images of unusual layers through the real `ctr`: too many for an overlay, with implied directories, unpacked ones."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import busybox_image
import pytest
from real_daemon import Daemon

from orlop.snapshots import probe

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]

NAME = "docker.io/library/deep:1"


def write_image(path: Path, tars: Sequence[bytes]) -> None:
    """A docker-save archive of an image of these layers."""
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
    layers = [archive({f"layer{n}": b"%d\n" % n}) for n in range(1, 520)]
    write_image(tmp_path / "image.tar", [busybox_image.layer(), *layers])
    daemon.ctr("images", "import", str(tmp_path / "image.tar"), timeout=180)
    done = daemon.ctr("run", "--rm", NAME, name, "sh", "-c", "ls / | grep -c ^layer; cat /layer1 /layer519")
    assert done.stdout.split() == ["519", "1", "519"]
    daemon.ctr("images", "rm", "--sync", NAME)
    root = daemon.work / "root/io.containerd.snapshotter.v1.overlayfs"
    assert not list((root / "merged").iterdir())
    assert not list((root / "layers").iterdir())


def orlop(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).parent / "orlop")
    return daemon.ctr(*arguments, program=program)


def test_directories_that_a_layer_only_implies_look_as_below(
    make_daemon: Callable[..., Daemon], tmp_path: Path, name: str
) -> None:
    daemon = make_daemon()
    if refusal := probe.refusal(daemon.work):
        pytest.skip(refusal)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        private = tarfile.TarInfo("private")
        private.type, private.mode, private.uid, private.gid = tarfile.DIRTYPE, 0o2711, 7, 8
        tar.addfile(private)
    write_image(tmp_path / "image.tar", [busybox_image.layer(), out.getvalue(), archive({"private/new/file": b"x"})])
    daemon.ctr("images", "import", str(tmp_path / "image.tar"))
    root = daemon.work / "root/io.containerd.snapshotter.v1.overlayfs"
    assert len(list((root / "layers").iterdir())) == 3
    script = "stat -c '%a %u %g' /private /private/new; cat /private/new/file"
    done = daemon.ctr("run", "--rm", NAME, name, "sh", "-c", script)
    assert done.stdout == "2711 7 8\n755 0 8\nx"
    assert orlop(daemon, "image", "inspect", NAME).stdout.count("is a directory") == 0


def test_it_is_told_which_layers_are_unpacked_and_why(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = make_daemon()
    if refusal := probe.refusal(daemon.work):
        pytest.skip(refusal)
    write_image(tmp_path / "image.tar", [archive({".wh.none": b"", "x": b"x"}), busybox_image.layer()])
    daemon.ctr("images", "import", str(tmp_path / "image.tar"))
    said = orlop(daemon, "image", "inspect", NAME).stdout
    assert "\n  Layer 1 is a directory: takes away 1 names with no layer below\n" in said
    (one,) = json.loads(orlop(daemon, "image", "inspect", "--json", NAME).stdout)
    why = [layer["whyDirectory"] for layer in one["manifests"][0]["layers"]]
    assert why == ["takes away 1 names with no layer below", None]
    names = [line.split()[0] for line in daemon.ctr("snapshots", "ls").stdout.splitlines() if "Committed" in line]
    assert sum("orlop.unpacked" in daemon.ctr("snapshots", "info", snapshot).stdout for snapshot in names) == 1
