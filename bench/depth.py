"""Images of many layers: how long they take to be ready, and containers of them to start."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from peers import Bench, Benchmark, Figure, Peer, busybox_image, measure, timed

NAME = "docker.io/library/deep:1"
FILES = 500
"""In each layer above the first."""


def bench_depth(bench: Bench) -> None:
    count = 0

    def start(peer: Peer) -> float:
        nonlocal count
        count += 1
        return timed(lambda: peer.ctr("run", "--rm", NAME, f"d{os.getpid()}-{count}", "true"))

    for layers in (1, 8, 10, 40, 60):
        with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
            write_deep_image(Path(archive.name), layers)

            def ready(peer: Peer, path: str = archive.name) -> float:
                peer.ctr("images", "rm", "--sync", NAME)
                return timed(lambda: peer.ctr("images", "import", path))

            ours, theirs = bench.paired(ready, max(bench.options.runs // 3, 2))
        if layers in (8, 40):
            bench.add(Figure(f"import and unpack: {layers} layers of {FILES} files", "s", ours, theirs, "<= 0.5"))
        if layers in (1, 10, 60):
            ours, theirs = bench.paired(start, bench.options.runs)
            bench.add(Figure(f"ctr run --rm, {layers} layers", "s", ours, theirs, "<= 0.75 (the same runc)"))
    for peer in (bench.orlop, bench.containerd):
        peer.ctr("images", "rm", "--sync", NAME)


def write_deep_image(path: Path, layers: int) -> None:
    """A docker-save archive of busybox with `layers` layers."""
    write_images(path, {NAME: [busybox_image.layer(), *(_layer(number) for number in range(1, layers))]})


def write_images(path: Path, images: Mapping[str, Sequence[bytes]]) -> None:
    """A docker-save archive of images, each a name and its layers' tars."""
    files: dict[str, bytes] = {}
    manifest = []
    for number, (name, tars) in enumerate(images.items()):
        digests = [hashlib.sha256(tar).hexdigest() for tar in tars]
        config = {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
            "os": "linux",
            "config": {"Env": ["PATH=/bin:/usr/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        }
        layers = [f"{digest}/layer.tar" for digest in digests]
        files |= dict(zip(layers, tars, strict=True)) | {f"{number}.json": json.dumps(config).encode()}
        manifest.append({"Config": f"{number}.json", "RepoTags": [name], "Layers": layers})
    with tarfile.open(path, "w") as archive:
        for name, data in {**files, "manifest.json": json.dumps(manifest).encode()}.items():
            add(archive, name, data)


def _layer(number: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        directory = tarfile.TarInfo(f"layer{number}")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(directory)
        for file in range(FILES):
            add(tar, f"layer{number}/{file}", f"{number} {file}\n".encode() * 100)
    return out.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


BENCHMARKS: dict[str, Benchmark] = {"depth": bench_depth}

if __name__ == "__main__":
    measure(BENCHMARKS, __doc__)
