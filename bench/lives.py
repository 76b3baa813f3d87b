"""Containers as a daemon's own clients run them: over one connection, with no program started for each call.

What `ctr` costs by itself is the same for both, and is most of an exec; here it is left out. The client is
`orlop.client`, against both.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import Awaitable, Callable

from peers import IMAGE, Bench, Benchmark, Figure, Peer, measure

from orlop.client import Client, connect
from orlop.client.run import Options, create, remove, rootfs
from orlop.core.container import Container
from orlop.core.scope import Scope
from orlop.core.task import IO, NewTask
from orlop.core.typed import Typed
from orlop.oci.spec import SpecOptions

CALLERS = 16
PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"
_numbers = itertools.count()


async def _model(client: Client, *command: str) -> tuple[Container, str]:
    """A container with its image's defaults, and the snapshot below its own."""
    container = await create(
        client, await client.image(IMAGE), f"model-{os.getpid()}", Options(SpecOptions(args=command))
    )
    info = await client.snapshots.stat(client.scope, container.snapshotter, container.snapshot_key)
    return container, info.parent


async def _live(client: Client, scope: Scope, model: Container, parent: str) -> None:
    """A container from its snapshot to the end of that."""
    id = f"life-{os.getpid()}-{next(_numbers)}"
    assert model.spec is not None
    document = json.loads(model.spec.value)
    document["linux"]["cgroupsPath"] = f"/{scope.namespace}/{id}"
    spec = Typed(model.spec.type_name, json.dumps(document).encode())
    mounts = await client.snapshots.prepare(scope, model.snapshotter, id, parent)
    await client.containers.create(
        scope, Container(id, runtime=model.runtime, spec=spec, snapshotter=model.snapshotter, snapshot_key=id)
    )
    await client.tasks.create(scope, NewTask(id, rootfs=mounts))
    ended = asyncio.create_task(client.tasks.wait(scope, id))
    await client.tasks.start(scope, id)
    await ended
    await client.tasks.delete(scope, id)
    await client.snapshots.remove(scope, model.snapshotter, id)
    await client.containers.delete(scope, id)


def _with_model(
    peer: Peer, command: tuple[str, ...], figure: Callable[[Client, Container, str], Awaitable[float]]
) -> float:
    """What `figure` returns, which is called with a container of `command` and the snapshot below that one's."""

    async def run() -> float:
        async with connect(peer.address) as client:
            model, parent = await _model(client, *command)
            try:
                return await figure(client, model, parent)
            finally:
                await remove(client, model.id, force=True)

    return asyncio.run(run())


def bench_lives(bench: Bench) -> None:
    total = 64

    async def rate(client: Client, model: Container, parent: str) -> float:
        free = asyncio.Semaphore(CALLERS)

        async def one() -> None:
            async with free:
                await _live(client, scope, model, parent)

        begin = time.perf_counter()
        async with client.lease() as scope, asyncio.TaskGroup() as group:
            for _ in range(total):
                group.create_task(one())
        return total / (time.perf_counter() - begin)

    ours, theirs = bench.paired(lambda peer: _with_model(peer, ("true",), rate), bench.options.runs)
    bench.add(Figure("containers a second, 16 callers of the API", "1/s", ours, theirs, ">= 2", True))


def bench_execs(bench: Bench) -> None:
    total = 10

    async def seconds(client: Client, model: Container, parent: str) -> float:
        scope = client.scope
        assert model.spec is not None
        document = json.loads(model.spec.value)["process"] | {"args": ["true"]}
        process = Typed(PROCESS, json.dumps(document).encode())
        await client.tasks.create(scope, NewTask(model.id, rootfs=await rootfs(client, model)))
        await client.tasks.start(scope, model.id)
        begin = time.perf_counter()
        for number in range(total):
            await client.tasks.exec(scope, model.id, f"x{number}", process, IO())
            ended = asyncio.create_task(client.tasks.wait(scope, model.id, f"x{number}"))
            await client.tasks.start(scope, model.id, f"x{number}")
            await ended
            await client.tasks.delete_process(scope, model.id, f"x{number}")
        return (time.perf_counter() - begin) / total

    ours, theirs = bench.paired(lambda peer: _with_model(peer, ("sleep", "600"), seconds), bench.options.runs)
    bench.add(Figure("exec of true through the API", "s", ours, theirs, "<= 0.5"))


BENCHMARKS: dict[str, Benchmark] = {"lives": bench_lives, "execs": bench_execs}

if __name__ == "__main__":
    measure(BENCHMARKS, __doc__)
