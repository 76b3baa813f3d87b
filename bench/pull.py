"""Images pulled from a registry on loopback until they are ready to run, and the memory that takes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from index import make_layer
from isal import igzip
from peers import Bench, Benchmark, Figure, Peer, busybox_image, measure, timed

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MEGABYTES = 64
"""Of all layers of an image together, before they are compressed."""


def bench_pull(bench: Bench) -> None:
    """Each image has the same bytes in another number of layers; half of them are random."""
    with registry() as address:
        for count in (1, 8, 40):
            layers = [_layer(f"l{number}", _MEGABYTES * (1 << 20) // count) for number in range(count)]
            reference = push(address, f"bench/l{count}", layers)
            ours, theirs = _paired(bench, reference)
            target = "<= 0.5" if count == 8 else ""
            bench.add(Figure(f"pull and unpack: {count} layers, {_MEGABYTES} MB", "s", ours, theirs, target))


def bench_pull_of_files(bench: Bench, files: int = 20_000, megabytes: int = 320, count: int = 8) -> None:
    """An image as those of applications are: many files of text, most of them small."""
    with registry() as address, tempfile.TemporaryDirectory(dir="/var/tmp") as work:
        layers = []
        for number in range(count):
            path = Path(work) / f"{number}"
            make_layer(path, files // count, (megabytes << 20) // files, seed=number)
            layers.append(igzip.decompress(path.read_bytes()))
        reference = push(address, "bench/files", layers)
        del layers
        ours, theirs = _paired(bench, reference)
    what = f"pull and unpack: {count} layers, {files} files, {megabytes} MB"
    bench.add(Figure(what, "s", ours, theirs, "<= 0.5"))


def _paired(bench: Bench, reference: str) -> tuple[float, float]:
    """The medians of pulls of `reference`, of which nothing is there before."""

    def once(peer: Peer) -> float:
        seconds = timed(lambda: peer.ctr("images", "pull", "--plain-http", reference))
        peer.ctr("images", "rm", "--sync", reference)
        return seconds

    return bench.paired(once, max(bench.options.runs // 2, 3))


def bench_memory(bench: Bench, megabytes: int = 2048) -> None:
    """What the daemon has at most in memory, above what it had before; its files in the page cache do not count."""
    with registry() as address:
        reference = push_plain(address, "bench/large", megabytes)
        grown = []
        for peer in (bench.orlop, bench.containerd):
            assert peer.process is not None
            before = _peak(peer.process.pid, reset=True)
            peer.ctr("images", "pull", "--plain-http", reference)
            grown.append(_peak(peer.process.pid) - before)
            peer.ctr("images", "rm", "--sync", reference)
        bench.add(Figure(f"memory that a pull of {megabytes} MB adds, peak", "MB", *grown, "flat"))


@contextmanager
def registry() -> Iterator[str]:
    """A docker-registry on a free port of loopback, without TLS."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    work = Path(tempfile.mkdtemp(prefix="bench-registry-", dir="/var/tmp"))
    (work / "config.yml").write_text(
        json.dumps(
            {
                "version": "0.1",
                "log": {"level": "error", "accesslog": {"disabled": True}},
                "storage": {"filesystem": {"rootdirectory": str(work)}},
                "http": {"addr": address},
            }
        )
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", str(work / "config.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait(address)
        yield address
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(work)


def _wait(address: str) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(f"http://{address}/v2/", timeout=5).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("docker-registry does not answer")


def push(address: str, repository: str, layers: list[bytes]) -> str:
    """Uploads an image of these tars, gzipped; returns its reference."""
    described = []
    for layer in layers:
        data = igzip.compress(layer, 1)
        described.append(_blob(address, repository, BytesIO(data), _digest(data), len(data), f"{_LAYER}+gzip"))
    return _image(address, repository, described, [_digest(layer) for layer in layers])


def push_plain(address: str, repository: str, megabytes: int) -> str:
    """Uploads an image of one layer, not compressed, with one file: its megabytes are random and differ."""
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            entry = tarfile.TarInfo("large")
            entry.size = megabytes << 20
            tar.addfile(entry, _Random(entry.size))  # type: ignore[arg-type]
        size = file.tell()
        file.seek(0)
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        file.seek(0)
        layer = _blob(address, repository, file, digest, size, _LAYER)
    return _image(address, repository, [layer], [digest])


class _Random:
    """A file of one random megabyte again and again, each with its number before it."""

    def __init__(self, size: int) -> None:
        self._block = os.urandom((1 << 20) - 8)
        self._number = 0
        self._rest = b""
        self._left = size

    def read(self, size: int) -> bytes:
        while len(self._rest) < min(size, self._left):
            self._rest += self._number.to_bytes(8, "big") + self._block
            self._number += 1
        part, self._rest = self._rest[:size], self._rest[size:]
        self._left -= len(part)
        return part


def _image(address: str, repository: str, layers: list[dict[str, object]], diff_ids: list[str]) -> str:
    config = json.dumps(
        {
            "os": "linux",
            "architecture": busybox_image._architecture(),
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    ).encode()
    kind = "application/vnd.oci.image.config.v1+json"
    described = _blob(address, repository, BytesIO(config), _digest(config), len(config), kind)
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": described, "layers": layers}
    url = f"http://{address}/v2/{repository}/manifests/1"
    headers = {"Content-Type": _MANIFEST}
    request = urllib.request.Request(url, json.dumps(manifest).encode(), headers, method="PUT")
    urllib.request.urlopen(request).close()
    return f"{address}/{repository}:1"


def _blob(address: str, repository: str, data: object, digest: str, size: int, media_type: str) -> dict[str, object]:
    start = urllib.request.Request(f"http://{address}/v2/{repository}/blobs/uploads/", method="POST")
    with urllib.request.urlopen(start) as answer:
        location = answer.headers["Location"]
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
    joined = "&" if "?" in location else "?"
    put = urllib.request.Request(f"{location}{joined}digest={digest}", data, headers, method="PUT")  # type: ignore[arg-type]
    urllib.request.urlopen(put).close()
    return {"mediaType": media_type, "digest": digest, "size": size}


def _layer(name: str, size: int) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        directory = tarfile.TarInfo(name)
        directory.type, directory.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(directory)
        for number in range(16):
            entry = tarfile.TarInfo(f"{name}/f{number}")
            entry.size = size // 16
            data = b"".join(os.urandom(1 << 12) + bytes(1 << 12) for _ in range(entry.size // (1 << 13) + 1))
            tar.addfile(entry, BytesIO(data[: entry.size]))
    return out.getvalue()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _peak(pid: int, *, reset: bool = False) -> float:
    """The peak of a process's memory in MB; with `reset` it is counted anew from here."""
    if reset:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


BENCHMARKS: dict[str, Benchmark] = {
    "pull": bench_pull,
    "pull-files": bench_pull_of_files,
    "pull-memory": bench_memory,
}

if __name__ == "__main__":
    measure(BENCHMARKS, __doc__)
