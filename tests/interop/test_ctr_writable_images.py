"""The snapshotter erofs with images that containers write to (`default_size`), compared by a client."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from real_daemon import IMAGE, Archives, Daemon

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]


def test_what_a_running_container_wrote_is_a_layer(
    make_daemon: Callable[..., Daemon], archives: Archives, tmp_path: Path, name: str
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('version = 4\n[plugins."io.containerd.snapshotter.v1.erofs"]\ndefault_size = "16MiB"\n')
    daemon = make_daemon("--config", str(config))
    plugin = daemon.ctr("plugins", "ls", "id==erofs").stdout
    if "skip" in plugin:
        pytest.skip(f"the kernel does not mount EROFS images from files: {plugin}")
    daemon.ctr("namespaces", "label", "default", "containerd.io/defaults/snapshotter=erofs")
    daemon.ctr("images", "import", "--snapshotter", "erofs", archives.oci)
    command = [Path(sys.executable).parent / "orlop", "run", "-d", IMAGE, name]
    command += ["sh", "-c", "echo written > /file; rm /bin/cat; sleep 600"]
    environment = os.environ | {"ORLOP_ADDRESS": daemon.address}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment, timeout=60)
    while daemon.ctr("tasks", "exec", "--exec-id", "e", name, "test", "!", "-e", "/bin/cat", check=False).returncode:
        pass
    done = subprocess.run(
        ["ctr", "-a", daemon.address, "snapshots", "--snapshotter", "erofs", "diff", name], stdout=subprocess.PIPE
    )
    assert done.returncode == 0
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(done.stdout))) as layer:
        assert {"file", "bin/.wh.cat"} <= set(layer.getnames())
        assert layer.extractfile("file").read() == b"written\n"  # type: ignore[union-attr]
