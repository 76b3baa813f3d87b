"""Pull, push, login, save and load from the command line, with a real docker-registry on loopback."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pty
import re
import shutil
import signal
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import busybox_image
import pytest
import real_registry
from images_world import described, encoded, entries_of, layout, named, small_image
from real_registry import PASSWORD, USER, Registry
from transfer_world import layer_of

from orlop.core import media

Orlop = Any

pytestmark = [
    pytest.mark.root,
    pytest.mark.ctr,
    pytest.mark.runtime,
    pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry"),
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with real_registry.serve(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One that asks for a user and a password."""
    with real_registry.serve(tmp_path_factory.mktemp("guarded"), basic=True) as registry:
        yield registry


@pytest.fixture
def home(orlop: Orlop, tmp_path: Path) -> Iterator[Path]:
    """Docker's configuration of this test alone."""
    orlop.environment["DOCKER_CONFIG"] = str(tmp_path / "docker")
    yield tmp_path / "docker"
    del orlop.environment["DOCKER_CONFIG"]


def pushed(orlop: Orlop, registry: Registry, name: str) -> str:
    """A reference at the registry to busybox, which is not here under that name."""
    reference = f"{registry.address}/team/{name}:1"
    orlop.daemon.ctr("images", "push", "--plain-http", reference, busybox_image.NAME)
    return reference


def test_an_image_is_pushed_pulled_and_run(orlop: Orlop, registry: Registry, name: str, home: Path) -> None:
    reference = f"{registry.address}/team/{name}:1"
    digest = orlop("images", "--digests", "busybox:latest").stdout.split()[6]
    done = orlop("push", "busybox", reference)
    assert done.stdout == f"{reference}  {digest}\n"
    assert f"pushing {reference}\n" in done.stderr
    done = orlop("pull", reference)
    assert done.stdout == f"{reference}  {digest}\n"
    assert done.stderr.splitlines()[0] == f"pulling {reference}"
    assert re.search(r"^[0-9a-f]{12}: here already$", done.stderr, re.MULTILINE)
    assert orlop("pull", "-q", reference).stdout == f"{reference}\n"
    assert orlop("run", "--rm", reference, name, "echo", "here").stdout == "here\n"
    orlop("rmi", "-q", reference)


def test_a_fresh_layer_is_told_phase_by_phase_and_runs(orlop: Orlop, registry: Registry, name: str, home: Path) -> None:
    reference = pushed(orlop, registry, name)
    orlop.environment["ORLOP_NAMESPACE"] = f"orlop-test-{name}"
    try:
        layer = re.escape(_layer_of_busybox())
        done = orlop("pull", reference)
        assert re.search(rf"^{layer}: waiting", done.stderr, re.MULTILINE)
        assert re.search(rf"^{layer}: done$", done.stderr, re.MULTILINE)
        assert orlop("run", "--rm", reference, name, "echo", "here").stdout == "here\n"
        orlop("rmi", "-q", reference)
    finally:
        del orlop.environment["ORLOP_NAMESPACE"]


def _layer_of_busybox() -> str:
    manifest = next(
        json.loads(data) for path, data in entries_of(busybox_image.oci_layout()).items() if b'"layers": [{' in data
    )
    return str(manifest["layers"][0]["digest"]).partition(":")[2][:12]


def test_run_pulls_what_is_missing_and_only_then(orlop: Orlop, registry: Registry, name: str, home: Path) -> None:
    reference = pushed(orlop, registry, name)
    refused = orlop("run", "--rm", "--pull", "never", reference, name, "true", status=1)
    assert "Get it with 'orlop pull'" in refused.stderr
    done = orlop("run", "--rm", reference, name, "echo", "pulled")
    assert done.stdout == "pulled\n"
    assert f"pulling {reference}" in done.stderr
    again = orlop("run", "--rm", reference, name, "echo", "again")
    assert (again.stdout, again.stderr) == ("again\n", "")
    always = orlop("run", "--rm", "--pull", "always", reference, name, "echo", "always")
    assert f"pulling {reference}" in always.stderr
    orlop("rmi", "-q", reference)


def test_what_a_registry_does_not_have_is_told(orlop: Orlop, registry: Registry, name: str, home: Path) -> None:
    reference = f"{registry.address}/team/{name}:none"
    refused = orlop("pull", reference, status=1)
    assert reference in refused.stderr
    assert "not found" in refused.stderr
    nobody = f"127.0.0.1:{real_registry.free_port()}"
    refused = orlop("pull", f"{nobody}/x:1", status=1)
    assert nobody in refused.stderr
    assert "kept" not in refused.stderr
    assert (
        "--platform and --all-platforms exclude"
        in orlop("pull", "--platform", "linux", "--all-platforms", "x", status=1).stderr
    )


def test_an_image_that_is_for_another_platform_is_told(orlop: Orlop, registry: Registry, name: str, home: Path) -> None:
    reference = pushed(orlop, registry, name)
    done = orlop("pull", "--platform", "linux/s390x", reference)
    assert re.search(rf"^orlop: {reference}: not for linux/s390x, only for linux/\w+$", done.stderr, re.MULTILINE)
    orlop("rmi", "-q", reference)


def test_of_all_platforms_every_layer_ends_as_done(
    orlop: Orlop, registry: Registry, name: str, home: Path, tmp_path: Path
) -> None:
    images = [small_image(("linux", one), [gzip.compress(layer_of(one), mtime=0)]) for one in ("amd64", "arm64")]
    entries = [
        described(image[0], media.OCI_MANIFEST, platform={"os": "linux", "architecture": one})
        for one, image in zip(("amd64", "arm64"), images, strict=True)
    ]
    index = encoded({"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": entries})
    reference = f"{registry.address}/team/{name}:1"
    blobs = [index, *images[0], *images[1]]
    (tmp_path / "two.tar").write_bytes(layout(named(described(index, media.OCI_INDEX), reference), blobs))
    orlop("import", "--no-unpack", tmp_path / "two.tar")
    digest = orlop("push", reference).stdout.split()[1]
    orlop("rmi", "-q", reference)
    done = orlop("pull", "--all-platforms", reference)
    assert done.stdout == f"{reference}  {digest}\n"
    last = dict(re.findall(r"^([0-9a-f]{12}): (\w+)", done.stderr, re.MULTILINE))
    assert list(last.values()) == ["done", "done"]
    orlop("rmi", "-q", reference)


def test_an_image_is_saved_and_loaded_the_same(orlop: Orlop, name: str, tmp_path: Path) -> None:
    orlop("tag", "busybox", f"{name}:1", f"{name}:2")
    digest = orlop("images", "--digests", f"{name}:1").stdout.split()[6]
    orlop("save", "-q", "-o", tmp_path / "two.tar", f"{name}:1", f"{name}:2")
    out = subprocess.run(orlop.command("save", f"{name}:1"), env=orlop.environment, capture_output=True, check=True)
    assert b"oci-layout" in out.stdout
    orlop("rmi", "-q", f"{name}:1", f"{name}:2")
    done = orlop("load", "-i", tmp_path / "two.tar")
    assert sorted(done.stdout.split()[::2]) == [f"docker.io/library/{name}:{number}" for number in (1, 2)]
    assert done.stdout.count(digest) == 2
    orlop("rmi", "-q", f"{name}:1", f"{name}:2")
    assert orlop("load", "-q", stdin=out.stdout).stdout == f"docker.io/library/{name}:1\n"
    assert orlop("run", "--rm", f"{name}:1", name, "echo", "loaded").stdout == "loaded\n"
    orlop("rmi", "-q", f"{name}:1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two.tar"]
    refused = orlop("save", "-o", tmp_path / "no" / "x.tar", "busybox", status=1)
    assert refused.stderr == f"orlop: cannot write {tmp_path}/no/x.tar: No such file or directory\n"


class TestLogin:
    def test_a_login_is_tried_kept_used_and_forgotten(
        self, orlop: Orlop, guarded: Registry, name: str, home: Path
    ) -> None:
        home.mkdir()
        (home / "config.json").write_text(json.dumps({"x": {"y": 1}, "auths": {"other.example": {"auth": "YTpi"}}}))
        reference = f"{guarded.address}/x/{name}:1"
        assert orlop("push", "busybox", reference, status=1).stderr
        done = self._login(orlop, guarded, PASSWORD)
        assert done.stdout == f"Logged in to {guarded.address}; kept in {home}/config.json\n"
        kept = json.loads((home / "config.json").read_text())
        assert kept["x"] == {"y": 1}
        assert sorted(kept["auths"]) == sorted([guarded.address, "other.example"])
        assert stat.S_IMODE((home / "config.json").stat().st_mode) == 0o600
        orlop("push", "busybox", reference)
        orlop("pull", reference)
        orlop("rmi", "-q", reference)
        assert orlop("logout", guarded.address).stdout.startswith("Logged out of ")
        assert "not logged in" in orlop("logout", guarded.address, status=1).stderr
        assert orlop("pull", reference, status=1).stderr
        assert [path.name for path in home.iterdir()] == ["config.json"]

    def test_a_wrong_password_is_refused_and_not_kept(self, orlop: Orlop, guarded: Registry, home: Path) -> None:
        refused = self._login(orlop, guarded, "wrong", status=1)
        assert guarded.address in refused.stderr
        assert "wrong" not in refused.stderr.replace("the user name or password is wrong", "")
        assert not home.exists()
        empty = self._login(orlop, guarded, "", status=1)
        assert "a user and a password are needed" in empty.stderr

    def test_a_helper_that_is_configured_keeps_them(
        self, orlop: Orlop, guarded: Registry, home: Path, tmp_path: Path
    ) -> None:
        helper = tmp_path / "bin" / "docker-credential-test"
        helper.parent.mkdir()
        helper.write_text(f'#!/bin/sh\ncat > {tmp_path}/"$1"\n')
        helper.chmod(0o755)
        home.mkdir()
        (home / "config.json").write_text('{"credsStore": "test"}')
        path = orlop.environment.get("PATH", "")
        orlop.environment["PATH"] = f"{helper.parent}:{path}"
        try:
            done = self._login(orlop, guarded, PASSWORD)
        finally:
            orlop.environment["PATH"] = path
        assert done.stdout.endswith("; kept in docker-credential-test\n")
        assert json.loads((tmp_path / "store").read_text()) == {
            "ServerURL": guarded.address,
            "Username": USER,
            "Secret": PASSWORD,
        }
        assert PASSWORD not in (home / "config.json").read_text()

    def test_a_registry_that_asks_for_nothing_is_told(self, orlop: Orlop, registry: Registry, home: Path) -> None:
        assert "asked for no credentials" in self._login(orlop, registry, "anything").stderr

    def test_without_a_terminal_nothing_is_asked(self, orlop: Orlop, guarded: Registry, home: Path) -> None:
        assert "use --user" in orlop("login", guarded.address, status=1).stderr
        assert "use --password-stdin" in orlop("login", "-u", "x", guarded.address, status=1).stderr

    def test_a_password_is_asked_for_and_not_shown(self, orlop: Orlop, guarded: Registry, home: Path) -> None:
        ours, theirs = pty.openpty()
        process = orlop.start("login", "-u", USER, guarded.address, stdin=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        said = b""
        while b"at 127.0.0.1" not in said or not said.rstrip().endswith(b":"):
            said += os.read(ours, 100)
        os.write(ours, PASSWORD.encode() + b"\n")
        out, _ = process.communicate(timeout=60)
        os.close(ours)
        assert process.returncode == 0
        assert out.startswith(b"Logged in to ")

    @staticmethod
    def _login(orlop: Orlop, registry: Registry, password: str, status: int = 0) -> Any:
        return orlop(
            "login", "-u", USER, "--password-stdin", registry.address, stdin=f"{password}\n".encode(), status=status
        )


class _Halting(BaseHTTPRequestHandler):
    """A registry of one image whose layer stops half way, until it is released."""

    protocol_version = "HTTP/1.1"
    server: _HaltingServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        data, media_type = self.server.found(self.path)
        if data is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if range_ := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start = int(range_[1])
            end = min(int(range_[2] or len(data) - 1), len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
            data = data[start : end + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", media_type)
        if "/manifests/" in self.path:
            self.send_header("Docker-Content-Digest", _digest(data))
        self.end_headers()
        if self.command == "HEAD":
            return
        if "octet" not in media_type:
            self.wfile.write(data)
            return
        self.server.starts.append(start)
        half = len(data) // 2
        try:
            self.wfile.write(data[:half])
            self.wfile.flush()
            self.server.halted.set()
            self.server.released.wait(60)
            self.wfile.write(data[half:])
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        return


class _HaltingServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Halting)
        self.halted, self.released = threading.Event(), threading.Event()
        self.starts: list[int] = []
        layer = os.urandom(6 << 20)
        tar = _tar(layer)
        diff_id = f"sha256:{hashlib.sha256(tar).hexdigest()}"
        config = json.dumps(
            {
                "os": "linux",
                "architecture": busybox_image._architecture(),
                "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            }
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": _pointer(config, "application/vnd.oci.image.config.v1+json"),
                "layers": [_pointer(tar, "application/vnd.oci.image.layer.v1.tar")],
            }
        ).encode()
        self._blobs = {_digest(config): config, _digest(tar): tar}
        self._layer = _digest(tar)
        self._manifest = manifest

    def found(self, path: str) -> tuple[bytes | None, str]:
        if "/manifests/" in path:
            return self._manifest, "application/vnd.oci.image.manifest.v1+json"
        digest = path.rpartition("/")[2]
        return self._blobs.get(digest), "application/octet-stream" if digest == self._layer else "application/json"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _pointer(data: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _tar(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo("file")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@contextmanager
def halting() -> Iterator[_HaltingServer]:
    server = _HaltingServer()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_interrupted_pull_says_that_it_goes_on_and_does(orlop: Orlop, name: str, home: Path) -> None:
    with halting() as server:
        reference = f"127.0.0.1:{server.server_address[1]}/{name}:1"
        process = orlop.start("pull", "--plain-http", reference)
        assert server.halted.wait(60)
        assert process.stderr is not None
        while b"downloading" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert out == b""
        assert f"orlop: interrupted. What has arrived is kept: 'orlop pull {reference}' goes on" in said.decode()
        assert reference not in orlop("images", "-q").stdout
        server.released.set()
        assert orlop("pull", "-q", "--plain-http", reference).stdout == f"{reference}\n"
        assert server.starts[0] == 0
        assert server.starts[-1] > 0
        orlop("rmi", "-q", reference)
