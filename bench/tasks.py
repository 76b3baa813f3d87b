"""Containers: how long one takes from start to exit, and what one that waits costs in memory."""

from __future__ import annotations

import os
import subprocess
import time

from peers import IMAGE, Bench, Benchmark, Figure, Peer, measure, proportional, resident, shims_of, timed


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


BENCHMARKS: dict[str, Benchmark] = {"run": bench_run, "memory": bench_memory}

if __name__ == "__main__":
    measure(BENCHMARKS, __doc__)
