"""An image whose layer is encrypted: a real decoder (openssl) that the daemon's configuration names makes it run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import busybox_image
import pytest
import real_registry
from images_world import archive_of, entries_of
from real_daemon import Daemon, end_leftovers

pytestmark = [
    pytest.mark.root,
    pytest.mark.ctr,
    pytest.mark.runtime,
    pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl"),
]

NAME = "example.org/secret:1"
ENCRYPTED = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
CONFIG = """
version = 4

[stream_processors."example.aes"]
  accepts = ["{encrypted}"]
  returns = "application/vnd.oci.image.layer.v1.tar+gzip"
  path = "openssl"
  args = ["enc", "-d", "-aes-256-ctr", "-pbkdf2", "-pass", "file:{key}"]
"""

Start = Callable[[str], Daemon]


@pytest.fixture
def work() -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix="orlop-", dir="/tmp"))
    yield work
    end_leftovers(work)
    shutil.rmtree(work, ignore_errors=True)


@pytest.fixture
def daemon(work: Path) -> Iterator[Daemon]:
    (work / "key").write_text("the key of the image\n")
    (work / "config.toml").write_text(CONFIG.format(encrypted=ENCRYPTED, key=work / "key"))
    daemon = Daemon(work, ["--config", str(work / "config.toml")])
    daemon.start()
    yield daemon
    daemon.remove_everything()
    daemon.stop()


def encrypted(archive: bytes, key: Path) -> bytes:
    """The OCI layout `archive` with its layer encrypted."""
    files = entries_of(archive)
    index = json.loads(files["index.json"])
    manifest = json.loads(files[_path(index["manifests"][0])])
    (layer,) = manifest["layers"]
    command = ["openssl", "enc", "-aes-256-ctr", "-pbkdf2", "-pass", f"file:{key}"]
    secret = subprocess.run(command, input=files.pop(_path(layer)), capture_output=True, check=True).stdout
    manifest["layers"] = [_added(files, secret, ENCRYPTED)]
    pointer = _added(files, json.dumps(manifest).encode(), index["manifests"][0]["mediaType"])
    index["manifests"][0] |= pointer
    files["index.json"] = json.dumps(index).encode()
    return archive_of(files)


def _path(descriptor: dict[str, str]) -> str:
    return f"blobs/sha256/{descriptor['digest'].partition(':')[2]}"


def _added(files: dict[str, bytes], data: bytes, media_type: str) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    files[f"blobs/sha256/{digest}"] = data
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def orlop(daemon: Daemon, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    program = str(Path(sys.executable).parent / "orlop")
    return subprocess.run([program, "-a", daemon.address, *arguments], input=stdin, capture_output=True, timeout=60)


def test_a_container_runs_from_an_encrypted_layer(daemon: Daemon) -> None:
    archive = encrypted(busybox_image.oci_layout(NAME), daemon.work / "key")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert not any(
            b"busybox" in (tar.extractfile(member) or io.BytesIO()).read()
            for member in tar
            if "blobs" in member.name and member.size > 10_000
        )
    done = orlop(daemon, "import", "-q", "-", stdin=archive)
    assert (done.stdout.decode(), done.returncode) == (f"{NAME}\n", 0), done.stderr
    done = orlop(daemon, "run", "--rm", NAME, f"secret-{os.getpid()}", "echo", "decrypted")
    assert (done.stdout, done.returncode) == (b"decrypted\n", 0), done.stderr


@pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry")
def test_an_encrypted_layer_is_unpacked_while_it_is_pulled(daemon: Daemon, tmp_path: Path) -> None:
    archive = encrypted(busybox_image.oci_layout(NAME), daemon.work / "key")
    with real_registry.serve(tmp_path / "registry") as registry:
        reference = f"{registry.address}/secret:1"
        assert orlop(daemon, "import", "-q", "--no-unpack", "-", stdin=archive).returncode == 0
        daemon.ctr("images", "push", "--plain-http", reference, NAME)
        assert orlop(daemon, "rmi", "-q", NAME).returncode == 0
        done = orlop(daemon, "run", "--rm", reference, f"secret-{os.getpid()}", "echo", "decrypted")
        assert (done.stdout, done.returncode) == (b"decrypted\n", 0), done.stderr


def test_without_its_key_an_image_is_told_to_be_wrong_and_nothing_is_left(daemon: Daemon) -> None:
    archive = encrypted(busybox_image.oci_layout(NAME), daemon.work / "key")
    (daemon.work / "key").write_text("another key\n")
    done = orlop(daemon, "import", "-", stdin=archive)
    assert done.returncode == 1
    assert b"failed to extract layer" in done.stderr
    (daemon.work / "key").unlink()
    done = orlop(daemon, "import", "-", stdin=archive)
    assert done.returncode == 1
    assert b"Can't open file" in done.stderr
    assert daemon.ctr("snapshots", "ls").stdout.splitlines()[1:] == []
