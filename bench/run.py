"""Measures orlop beside containerd, in one run. See README.md."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import busybox_image
from http2 import calls_per_second

IMAGE = busybox_image.NAME


@dataclass
class Peer:
    """A daemon under measurement."""

    name: str
    work: Path
    command: list[str]
    ctr_program: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return str(self.work / "s.sock")

    def start(self) -> None:
        log = (self.work / "log").open("wb")
        self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        for _ in range(300):
            if subprocess.run([self.ctr_program, "-a", self.address, "version"], capture_output=True).returncode == 0:
                return
            time.sleep(0.05)
        raise SystemExit(f"{self.name} does not start:\n{(self.work / 'log').read_text()[-3000:]}")

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(30)

    def ctr(self, *arguments: str) -> str:
        done = subprocess.run([self.ctr_program, "-a", self.address, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(
                f"{self.name}: ctr {' '.join(arguments)}: {done.stderr}\n{(self.work / 'log').read_text()[-3000:]}"
            )
        return done.stdout


@dataclass
class Figure:
    """One row of the table: what was measured, for both, in `unit`; `target` is the ratio orlop must reach."""

    what: str
    unit: str
    orlop: float
    containerd: float
    target: str
    more_is_better: bool = False

    @property
    def ratio(self) -> float:
        return self.orlop / self.containerd if self.containerd else float("nan")


@dataclass
class Bench:
    orlop: Peer
    containerd: Peer
    options: argparse.Namespace
    figures: list[Figure] = field(default_factory=list)

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)
        print(
            f"{figure.what:52} {figure.orlop:12.3f} {figure.containerd:12.3f} {figure.unit:8} "
            f"{figure.ratio:7.2f}x   {figure.target}",
            flush=True,
        )

    def paired(self, measure: Callable[[Peer], float], runs: int) -> tuple[float, float]:
        """The medians of `measure` for both, taken in turn after one run of each that does not count."""
        measure(self.orlop), measure(self.containerd)
        ours, theirs = [], []
        for _ in range(runs):
            ours.append(measure(self.orlop))
            theirs.append(measure(self.containerd))
        return statistics.median(ours), statistics.median(theirs)


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def bench_run(bench: Bench) -> None:
    count = 0

    def once(peer: Peer, *extra: str) -> float:
        nonlocal count
        count += 1
        return timed(lambda: peer.ctr("run", "--rm", *extra, IMAGE, f"b{os.getpid()}-{count}", "true"))

    ours, theirs = bench.paired(once, bench.options.runs)
    bench.add(Figure("ctr run --rm IMAGE true", "s", ours, theirs, "<= 0.75 (the same runc)"))


def bench_memory(bench: Bench) -> None:
    for peer in (bench.orlop, bench.containerd):
        peer.ctr("version")
    time.sleep(1)
    assert bench.orlop.process is not None
    assert bench.containerd.process is not None
    bench.add(
        Figure(
            "idle daemon, RSS",
            "MB",
            resident(bench.orlop.process.pid),
            resident(bench.containerd.process.pid),
            "<= 60 MB",
        )
    )
    shims = []
    for peer in (bench.orlop, bench.containerd):
        before = {process: proportional(process) for process in shims_of(peer)}
        names = [f"m{os.getpid()}-{number}" for number in range(10)]
        for name in names:
            peer.ctr("run", "-d", IMAGE, name, "sleep", "600")
        after = {process: proportional(process) for process in shims_of(peer)}
        shims.append((sum(after.values()) - sum(before.values())) / len(names))
        for name in names:
            subprocess.run([peer.ctr_program, "-a", peer.address, "tasks", "rm", "-f", name], capture_output=True)
            peer.ctr("containers", "rm", name)
    bench.add(Figure("a running container's shim, PSS", "MB", shims[0], shims[1], "<= 1.5 MB"))


def resident(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def proportional(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1]) / 1024


def shims_of(peer: Peer) -> list[int]:
    """The shims, and the fork server if there is one: processes whose command line names the peer's directories."""
    assert peer.process is not None
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in (peer.process.pid, os.getpid()):
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(peer.work).encode() in command and b"sleep" not in command:
                found.append(int(entry.name))
    return found


def bench_calls(bench: Bench) -> None:
    method = "/containerd.services.version.v1.Version/Version"
    for callers, target in ((1, ">= 0.6"), (16, ">= 0.75")):
        ours, theirs = bench.paired(lambda peer, n=callers: calls_per_second(peer.address, method, 1.0, n), 5)
        bench.add(Figure(f"unary calls a second, {callers} at a time", "calls/s", ours, theirs, target, True))


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


BENCHMARKS = {"run": bench_run, "memory": bench_memory, "calls": bench_calls, "import": bench_import}


@contextmanager
def peers(options: argparse.Namespace) -> Iterator[tuple[Peer, Peer]]:
    works = [Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir="/var/tmp")) for name in ("orlop", "containerd")]
    config = works[1] / "config.toml"
    config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    orlopd = Path(sys.executable).parent / "orlopd"
    made = []
    for name, work, command in (
        ("orlop", works[0], [str(orlopd)]),
        ("containerd", works[1], [options.containerd, "--config", str(config)]),
    ):
        directories = ["--root", f"{work}/root", "--state", f"{work}/state", "--address", f"{work}/s.sock"]
        made.append(Peer(name, work, [*command, *directories], options.ctr))
    try:
        for peer in made:
            peer.start()
            archive = peer.work / "busybox.tar"
            archive.write_bytes(busybox_image.oci_layout())
            peer.ctr("images", "import", str(archive))
        yield made[0], made[1]
    finally:
        for peer in made:
            leftovers = shims_of(peer) if peer.process else []
            peer.stop()
            for process in leftovers:
                try:
                    os.kill(process, signal.SIGTERM)
                except ProcessLookupError:
                    continue
            shutil.rmtree(peer.work, ignore_errors=True)


def machine(options: argparse.Namespace) -> dict[str, str]:
    def said(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()[0]

    kind = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"
    return {
        "kernel": os.uname().release,
        "processors": str(os.cpu_count()),
        "cgroups": "hybrid" if kind == "v1" and Path("/sys/fs/cgroup/unified").exists() else kind,
        "python": sys.version.split()[0],
        "containerd": said(options.containerd, "--version"),
        "ctr": said(options.ctr, "--version"),
        "runc": said("runc", "--version"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--megabytes", type=int, default=235)
    parser.add_argument("--only", action="append", choices=sorted(BENCHMARKS))
    parser.add_argument("--containerd", default="containerd")
    parser.add_argument("--ctr", default="ctr")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    facts = machine(options)
    for name, value in facts.items():
        print(f"{name}: {value}")
    print(f"\n{'':52} {'orlop':>12} {'containerd':>12} {'':8} {'ratio':>8}   target")
    with peers(options) as (orlop, containerd):
        bench = Bench(orlop, containerd, options)
        for name, benchmark in BENCHMARKS.items():
            if not options.only or name in options.only:
                benchmark(bench)
    if options.json:
        options.json.write_text(
            json.dumps(
                {"machine": facts, "figures": [vars(figure) | {"ratio": figure.ratio} for figure in bench.figures]},
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
