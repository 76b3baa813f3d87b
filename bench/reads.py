"""Many small images, and what containers read from theirs: containerd's lie in plain directories."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import depth
from peers import Bench, Benchmark, Figure, Peer, busybox_image, measure, timed

NAME = "docker.io/library/read:1"
IMAGES = 100
FILES = 4000
READ = 1000
_PIECE = 1 << 18


def bench_small_images(bench: Bench) -> None:
    names = [f"docker.io/library/small{number}:1" for number in range(IMAGES)]
    base = busybox_image.layer()
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        depth.write_images(Path(archive.name), {name: [base, small_layer(name)] for name in names})

        def ready(peer: Peer) -> float:
            seconds = timed(lambda: peer.ctr("images", "import", archive.name))
            peer.ctr("images", "rm", "--sync", *names)
            return seconds

        ours, theirs = bench.paired(ready, max(bench.options.runs // 3, 2))
    bench.add(Figure(f"import and unpack: {IMAGES} small images", "s", ours, theirs, "<= 1"))


def bench_reads(bench: Bench) -> None:
    """Each figure is the best of its runs: the disk has other users."""
    megabytes = bench.options.megabytes
    names = random.Random(2).sample([name_of(number) for number in range(FILES)], READ)
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        layer = read_layer(megabytes)
        depth.write_images(Path(archive.name), {NAME: [busybox_image.layer(), layer]})
        del layer
        for peer in (bench.orlop, bench.containerd):
            peer.ctr("images", "import", archive.name)
    seconds: dict[tuple[str, str], list[float]] = {}

    def measure_all(suffix: str) -> None:
        with containers(bench.orlop) as ours, containers(bench.containerd) as theirs:
            os.sync()
            for _ in range(max(bench.options.runs // 2, 3)):
                for peer, (first, second) in ((bench.orlop, ours), (bench.containerd, theirs)):
                    for what, paths in ((f"{READ} files", names), (f"{megabytes} MB in turn", ["big"])):
                        drop_caches()
                        for state, root in (("cold", first), ("warm", first), ("warm, second container", second)):
                            taken = timed(lambda root=root, paths=paths: read(root, paths))
                            seconds.setdefault((f"read {what}, {state}{suffix}", peer.name), []).append(taken)

    measure_all("")
    for peer in (bench.orlop, bench.containerd):
        forget(peer)
    measure_all(", started cold")
    for what in dict.fromkeys(what for what, _ in seconds):
        ours_best, theirs_best = (min(seconds[what, peer.name]) for peer in (bench.orlop, bench.containerd))
        bench.add(Figure(what, "s", ours_best, theirs_best, "<= 1.1"))
    for peer in (bench.orlop, bench.containerd):
        peer.ctr("images", "rm", "--sync", NAME)


def forget(peer: Peer) -> None:
    """Has the daemon look after its layers' mounts when nothing of them is in memory, as a host that was idle has."""
    drop_caches()
    peer.ctr("run", "--rm", NAME, f"f{os.getpid()}", "true")
    drop_caches()
    peer.ctr("images", "tag", NAME, f"{NAME}-again")
    peer.ctr("images", "rm", "--sync", f"{NAME}-again")


@contextmanager
def containers(peer: Peer) -> Iterator[list[Path]]:
    """The roots of two containers of the image."""
    names = [f"r{os.getpid()}-{number}" for number in range(2)]
    try:
        for name in names:
            peer.ctr("run", "-d", NAME, name, "sleep", "3600")
        listed = dict(line.split()[:2] for line in peer.ctr("tasks", "ls").splitlines()[1:])
        yield [Path("/proc", listed[name], "root") for name in names]
    finally:
        for name in names:
            subprocess.run([peer.ctr_program, "-a", peer.address, "tasks", "rm", "-f", name], capture_output=True)
            subprocess.run([peer.ctr_program, "-a", peer.address, "containers", "rm", name], capture_output=True)


def read(root: Path, names: list[str]) -> None:
    buffer = bytearray(_PIECE)
    for name in names:
        with open(root / name, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3")


def name_of(number: int) -> str:
    return f"d{number % 20}/f{number}"


def read_layer(megabytes: int) -> bytes:
    """Files of 500 to 20,000 bytes, and one of `megabytes`; nothing in them repeats within a block."""
    source = random.Random(1)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(20):
            directory = tarfile.TarInfo(f"d{number}")
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(directory)
        for number in range(FILES):
            depth.add(tar, name_of(number), source.randbytes(source.choice((500, 3000, 9000, 20_000))))
        depth.add(tar, "big", source.randbytes(1 << 20) * megabytes)
    return out.getvalue()


def small_layer(text: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(20):
            depth.add(tar, f"{number}", f"{text} {number}\n".encode() * 20)
    return out.getvalue()


BENCHMARKS: dict[str, Benchmark] = {"small": bench_small_images, "reads": bench_reads}

if __name__ == "__main__":
    measure(BENCHMARKS, __doc__)
