"""Unary calls on the socket."""

from __future__ import annotations

from http2 import calls_per_second
from peers import Bench, Benchmark, Figure, measure


def bench_calls(bench: Bench) -> None:
    method = "/containerd.services.version.v1.Version/Version"
    for callers, target in ((1, ">= 0.6"), (16, ">= 0.75")):
        ours, theirs = bench.paired(lambda peer, n=callers: calls_per_second(peer.address, method, 1.0, n), 5)
        bench.add(Figure(f"unary calls a second, {callers} at a time", "calls/s", ours, theirs, target, True))


BENCHMARKS: dict[str, Benchmark] = {"calls": bench_calls}

if __name__ == "__main__":
    measure(BENCHMARKS, __doc__)
