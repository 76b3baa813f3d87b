"""Content through the socket: a blob written and read by `ctr`, one stream in and many small reads out."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import time

from peers import Bench, Benchmark, Figure, Peer, measure

_MEGABYTES = 256
_refs = itertools.count()


def bench_content(bench: Bench) -> None:
    data = os.urandom(_MEGABYTES << 20)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blob = bench.orlop.work / "blob"
    blob.write_bytes(data)
    read: dict[str, list[float]] = {bench.orlop.name: [], bench.containerd.name: []}

    def speed(peer: Peer) -> float:
        """Writes the blob, reads it, removes it; returns the speed of writing and keeps that of reading."""
        options = ("--expected-digest", digest, "--expected-size", str(len(data)))
        written = _seconds(peer, "content", "ingest", *options, f"bench-{next(_refs)}", stdin=str(blob))
        read[peer.name].append(_MEGABYTES / _seconds(peer, "content", "get", digest))
        peer.ctr("content", "rm", digest)
        return _MEGABYTES / written

    ours, theirs = bench.paired(speed, bench.options.runs)
    bench.add(Figure(f"content written, {_MEGABYTES} MB", "MB/s", ours, theirs, ">= 0.5", True))
    ours, theirs = (sorted(speeds)[len(speeds) // 2] for speeds in read.values())
    bench.add(Figure(f"content read, {_MEGABYTES} MB", "MB/s", ours, theirs, ">= 0.5", True))
    blob.unlink()


def _seconds(peer: Peer, *arguments: str, stdin: str = os.devnull) -> float:
    start = time.perf_counter()
    with open(stdin, "rb") as source:
        command = [peer.ctr_program, "-a", peer.address, *arguments]
        subprocess.run(command, stdin=source, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


BENCHMARKS: dict[str, Benchmark] = {"content": bench_content}

if __name__ == "__main__":
    measure(BENCHMARKS, __doc__)
