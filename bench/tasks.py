"""Containers: how long one takes from start to exit, and what one that waits costs in memory."""

from __future__ import annotations

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from peers import IMAGE, Bench, Benchmark, Figure, Peer, measure, proportional, resident, shims_of, timed

_SETTLED = 5.0
"""Seconds after which a container that was started counts as idle."""


def bench_run(bench: Bench) -> None:
    count = 0

    def once(peer: Peer, *extra: str) -> float:
        nonlocal count
        count += 1
        return timed(lambda: peer.ctr("run", "--rm", *extra, IMAGE, f"b{os.getpid()}-{count}", "true"))

    ours, theirs = bench.paired(once, bench.options.runs)
    target = "<= 0.5" if bench.orlop.oci_runtime.startswith("crun") else "<= 0.75 (the same runc)"
    bench.add(Figure("ctr run --rm IMAGE true", "s", ours, theirs, target))


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
        time.sleep(_SETTLED)
        after = {process: proportional(process) for process in shims_of(peer)}
        shims.append((sum(after.values()) - sum(before.values())) / len(names))
        for name in names:
            remove(peer, name)
    bench.add(Figure("a running container's shim, PSS", "MB", shims[0], shims[1], "<= 1.5 MB"))


def bench_exec(bench: Bench) -> None:
    name, count = f"e{os.getpid()}", 0

    def once(peer: Peer) -> float:
        nonlocal count
        count += 1
        return timed(lambda: peer.ctr("tasks", "exec", "--exec-id", f"x{count}", name, "true"))

    for peer in (bench.orlop, bench.containerd):
        peer.ctr("run", "-d", IMAGE, name, "sleep", "600")
    ours, theirs = bench.paired(once, bench.options.runs)
    for peer in (bench.orlop, bench.containerd):
        remove(peer, name)
    bench.add(Figure("exec of true in a running container", "s", ours, theirs, "<= 0.5"))


def bench_starts(bench: Bench) -> None:
    """How many `ctr run --rm` of `true` end a second, with 16 that run at a time."""
    total, count = 64, 0

    def once(peer: Peer) -> float:
        nonlocal count
        count += 1
        names = [f"s{os.getpid()}-{count}-{number}" for number in range(total)]
        with ThreadPoolExecutor(16) as callers:
            return total / timed(
                lambda: list(callers.map(lambda name: peer.ctr("run", "--rm", IMAGE, name, "true"), names))
            )

    ours, theirs = bench.paired(once, 3)
    bench.add(Figure("containers a second, 16 callers", "1/s", ours, theirs, ">= 2", True))


def bench_output(bench: Bench) -> None:
    """Standard output of a container through the client."""
    megabytes, count = 256, 0

    def once(peer: Peer) -> float:
        nonlocal count
        count += 1
        command = f"dd if=/dev/zero bs=64k count={megabytes * 16} 2>/dev/null"
        arguments = ["run", "--rm", IMAGE, f"o{os.getpid()}-{count}", "sh", "-c", command]
        whole = [peer.ctr_program, "-a", peer.address, *arguments]
        return megabytes / timed(lambda: subprocess.run(whole, stdout=subprocess.DEVNULL, check=True))

    ours, theirs = bench.paired(once, 5)
    bench.add(Figure(f"output of {megabytes} MB through the client", "MB/s", ours, theirs, ">= 1", True))


def bench_many(bench: Bench) -> None:
    """Idle containers: what each adds in shims, and what the daemon takes then."""
    rows: list[tuple[float, float]] = []
    names = [f"i{os.getpid()}-{number}" for number in range(bench.options.containers)]
    for peer in (bench.orlop, bench.containerd):
        assert peer.process is not None
        before = sum(map(proportional, shims_of(peer)))
        with ThreadPoolExecutor(4) as callers:
            list(callers.map(lambda name, peer=peer: peer.ctr("run", "-d", IMAGE, name, "sleep", "6000"), names))
            time.sleep(_SETTLED)
            after = sum(map(proportional, shims_of(peer)))
            rows.append(((after - before) / len(names), resident(peer.process.pid)))
            list(callers.map(lambda name, peer=peer: remove(peer, name), names))
    what = f"{len(names)} idle containers"
    bench.add(Figure(f"{what}: PSS of shims, each", "MB", rows[0][0], rows[1][0], "<= 1.5 MB"))
    bench.add(Figure(f"{what}: daemon, RSS", "MB", rows[0][1], rows[1][1], ""))


def remove(peer: Peer, name: str) -> None:
    subprocess.run([peer.ctr_program, "-a", peer.address, "tasks", "rm", "-f", name], capture_output=True)
    peer.ctr("containers", "rm", name)


BENCHMARKS: dict[str, Benchmark] = {
    "run": bench_run,
    "memory": bench_memory,
    "exec": bench_exec,
    "starts": bench_starts,
    "output": bench_output,
    "many": bench_many,
}

if __name__ == "__main__":
    measure(BENCHMARKS, __doc__)
