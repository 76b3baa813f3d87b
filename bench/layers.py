"""Images from archives: imported and unpacked."""

from __future__ import annotations

import gzip
import os
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

from peers import Bench, Benchmark, Figure, Peer, busybox_image, measure, timed


def bench_import(bench: Bench) -> None:
    cases = (
        (
            f"import and unpack: {bench.options.files} files",
            many_files(bench.options.files),
            "<= 1/6 (issue: indexed layers)",
        ),
        (f"import and unpack: 5 files, {bench.options.megabytes} MB", five_files(bench.options.megabytes), "<= 0.5"),
    )
    for what, layer, target in cases:
        with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
            write_image(archive.name, layer)
            del layer

            def once(peer: Peer, path: str = archive.name) -> float:
                seconds = timed(lambda: peer.ctr("images", "import", path))
                peer.ctr("images", "rm", "--sync", "example.org/bench:1")
                return seconds

            ours, theirs = bench.paired(once, max(bench.options.runs // 3, 2))
        bench.add(Figure(what, "s", ours, theirs, target))


def many_files(count: int) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(count):
            data = (f"file {number}\n" * 50).encode()
            entry = tarfile.TarInfo(f"d{number % 300}/f{number}")
            entry.size = len(data)
            tar.addfile(entry, BytesIO(data))
    return out.getvalue()


def five_files(megabytes: int) -> bytes:
    out = BytesIO()
    block = os.urandom(1 << 16) + bytes(1 << 16)
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(5):
            data = block * (megabytes * 8 // 5)
            entry = tarfile.TarInfo(f"big{number}")
            entry.size = len(data)
            tar.addfile(entry, BytesIO(data))
    return out.getvalue()


def write_image(path: str, layer: bytes) -> None:
    """An OCI layout of one image with this layer, gzipped."""
    real = busybox_image.layer
    busybox_image.layer = lambda: layer
    level = gzip.compress
    try:
        busybox_image.gzip.compress = lambda data, **_: level(data, compresslevel=1, mtime=0)  # type: ignore[assignment]
        Path(path).write_bytes(busybox_image.oci_layout("example.org/bench:1"))
    finally:
        busybox_image.layer = real
        busybox_image.gzip.compress = level  # type: ignore[assignment]


BENCHMARKS: dict[str, Benchmark] = {"import": bench_import}

if __name__ == "__main__":
    measure(BENCHMARKS, __doc__)
