"""The two daemons under measurement, side by side, and the figures that come out."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import busybox_image

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

    @property
    def oci_runtime(self) -> str:
        """The OCI runtime of containers that name none: what orlop says, and runc for containerd."""
        for line in self.ctr("plugins", "ls", "--detailed", "id==task").splitlines():
            name, _, value = line.strip().partition(" ")
            if name == "oci-runtime":
                return value.strip()
        return "runc"

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


def unmount_below(directory: Path) -> None:
    """What a daemon leaves mounted for containers that might still use it."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in reversed(points):
        if point.startswith(f"{directory}/"):
            subprocess.run(["umount", "--lazy", point], check=False)


@contextmanager
def peers(options: argparse.Namespace) -> Iterator[tuple[Peer, Peer]]:
    works = [Path(tempfile.mkdtemp(prefix=f"bench-{name}-", dir="/var/tmp")) for name in ("orlop", "containerd")]
    configs = [work / "config.toml" for work in works]
    task = f'[plugins."io.containerd.runtime.v2.task"]\noci_runtime = "{options.oci_runtime}"\n'
    configs[0].write_text(f"version = 4\n{task}")
    configs[1].write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    orlopd = Path(sys.executable).parent / "orlopd"
    made = []
    for name, work, command in (
        ("orlop", works[0], [str(orlopd), "--config", str(configs[0])]),
        ("containerd", works[1], [options.containerd, "--config", str(configs[1])]),
    ):
        # On a host the state is below /run, in memory.
        (work / "state").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=711", "tmpfs", work / "state"], check=True)
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
            unmount_below(peer.work)
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


Benchmark = Callable[[Bench], None]


def measure(benchmarks: Mapping[str, Benchmark], description: str | None) -> None:
    """Reads the command line, runs those of `benchmarks` that it asks for, and prints the table."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--megabytes", type=int, default=235)
    parser.add_argument("--containers", type=int, default=300)
    parser.add_argument("--only", action="append", choices=sorted(benchmarks))
    parser.add_argument("--containerd", default="containerd")
    parser.add_argument("--ctr", default="ctr")
    parser.add_argument("--oci-runtime", default="auto", help="orlop's; runc to compare with the same one")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    facts = machine(options)
    for name, value in facts.items():
        print(f"{name}: {value}")
    with peers(options) as (orlop, containerd):
        for peer in (orlop, containerd):
            facts[f"OCI runtime of {peer.name}"] = peer.oci_runtime
            print(f"OCI runtime of {peer.name}: {peer.oci_runtime}")
        print(f"\n{'':52} {'orlop':>12} {'containerd':>12} {'':8} {'ratio':>8}   target")
        bench = Bench(orlop, containerd, options)
        for name, benchmark in benchmarks.items():
            if not options.only or name in options.only:
                benchmark(bench)
    if options.json:
        options.json.write_text(
            json.dumps(
                {"machine": facts, "figures": [vars(figure) | {"ratio": figure.ratio} for figure in bench.figures]},
                indent=2,
            )
        )
