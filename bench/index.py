"""A layer of many files made ready: indexed, as the daemon does, and unpacked by GNU tar, in one run.

Run by itself: `.venv/bin/python bench/index.py --files 66000 --megabytes 740`. Works in a directory below --place:
choose the file system that layers are to be on.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from isal import igzip

from orlop.layers import tar, write
from orlop.layers.compression import decompress
from orlop.layers.index import LayerIndex, index_layer
from orlop.layers.pipeline import Ahead, Digester

_SECOND = 1_000_000_000
_POOL = 1 << 20


def make_layer(path: Path, files: int, size: int, seed: int = 1) -> None:
    """A gzipped layer of so many files of text, `size` bytes each on average, a hundred to a directory."""
    chance = random.Random(seed)
    words = [bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz", k=chance.randint(3, 9))) for _ in range(2000)]
    pool = b" ".join(chance.choices(words, k=_POOL // 6))
    with igzip.open(path, "wb", compresslevel=1) as out:
        for number in range(files):
            if number % 100 == 0:
                name = b"usr/share/directory-%d/" % (number // 100)
                out.write(write.head(tar.Entry(name, tar.DIRECTORY, 0o755, 0, 0, 0, number * _SECOND, 0, 0)))
            length = min(int(chance.expovariate(1 / size)), len(pool) - 1)
            start = chance.randrange(len(pool) - length)
            made = tar.Entry(name + b"file-%d" % number, tar.REGULAR, 0o644, 0, 0, length, number * _SECOND, 0, length)
            out.write(write.head(made) + pool[start : start + length] + write.padding(length))
        out.write(write.END)


def pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 18):
            yield piece


def indexed(layer: Path, place: Path) -> LayerIndex:
    """As the daemon does: decompressed ahead, digested beside, copied and indexed in passing."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    tar_fd, image_fd = os.open(place / "layer.tar", flags), os.open(place / "layer.erofs", flags)
    try:
        with Ahead(decompress(pieces(layer)), threading.Event()) as ahead, Digester() as digester:
            return index_layer(digester.passing(ahead), tar_fd, image_fd)
    finally:
        os.close(tar_fd)
        os.close(image_fd)


def digested(layer: Path) -> None:
    """What an index cannot do without: decompressed and digested, and nothing else."""
    with Ahead(decompress(pieces(layer)), threading.Event()) as ahead, Digester() as digester:
        for _ in digester.passing(ahead):
            pass


def unpacked(layer: Path, place: Path) -> None:
    root = place / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    subprocess.run(["tar", "-x", "--numeric-owner", "-f", layer, "-C", root], check=True)


def cost(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall and of processors, those of children too."""
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    start = time.perf_counter()
    work()
    wall = time.perf_counter() - start
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    spent = sum(
        new.ru_utime + new.ru_stime - old.ru_utime - old.ru_stime for new, old in zip(after, before, strict=True)
    )
    return wall, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--megabytes", type=int, default=33)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--place", default="/var/tmp")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="orlop-bench-index-", dir=options.place) as directory:
        place = Path(directory)
        layer = place / "layer.tar.gz"
        make_layer(layer, options.files, options.megabytes * 1_000_000 // options.files)
        print(f"{options.files} files, {layer.stat().st_size / 1e6:.0f} MB gzip, {options.runs} runs, the best of each")
        cases: dict[str, Callable[[], object]] = {
            "decompress and digest": lambda: digested(layer),
            "the same, and index": lambda: indexed(layer, place),
            "GNU tar -x": lambda: unpacked(layer, place),
        }
        best: dict[str, tuple[float, float]] = {}
        for _ in range(options.runs):
            for name, work in cases.items():
                best[name] = min(best.get(name, (1e9, 1e9)), cost(work))
        for name, (wall, spent) in best.items():
            print(f"{name:24} {wall:8.2f} s {spent:8.2f} s of processors")
        made = indexed(layer, place)
        print(f"{made.entries} entries, image of {made.image_size / 1e6:.1f} MB over {made.tar_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
