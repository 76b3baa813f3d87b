"""The kernel's wait before moves between cgroups, begun ahead."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.message import Message

from orlop.api.events import container_pb2, snapshot_pb2
from orlop.core.event import Envelope
from orlop.core.wire import common
from orlop.runtime.cgroup_moves import CgroupMoves
from orlop.shim.cgroup import own_procs


class Procs:
    """Plays the lock: each opening is one that took it. A FIFO, since opening one waits for its reader."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.taken = 0
        os.mkfifo(path)

    def __call__(self) -> str:
        self.taken += 1
        return str(self.path)

    async def pass_on(self) -> bytes:
        """Lets one writer go on; what it wrote."""
        return await asyncio.wait_for(asyncio.to_thread(self.path.read_bytes), 20)


async def test_a_move_that_is_waited_for_is_not_asked_for_again(tmp_path: Path) -> None:
    moves = CgroupMoves(procs := Procs(tmp_path / "procs"))
    moves.expect()
    moves.expect()
    assert await procs.pass_on() == b"0"
    async with asyncio.timeout(20):
        while procs.taken < 2:
            moves.expect()
            await asyncio.sleep(0.001)
    assert await procs.pass_on() == b"0"
    assert procs.taken == 2
    await moves.close()


async def test_where_it_is_not_possible_it_is_tried_once() -> None:
    tries = []

    def procs() -> str:
        tries.append(1)
        raise PermissionError("cgroup.procs")

    moves = CgroupMoves(procs)
    for _ in range(20):
        moves.expect()
        await asyncio.sleep(0.005)
    assert len(tries) == 1
    await moves.close()


@pytest.mark.parametrize(
    ("topic", "event", "is_sign"),
    [
        ("/containers/create", container_pb2.ContainerCreate(id="web"), True),
        ("/snapshot/prepare", snapshot_pb2.SnapshotPrepare(key="web"), True),
        ("/snapshot/prepare", snapshot_pb2.SnapshotPrepare(key="extract-1 sha256:0"), False),
    ],
)
async def test_what_comes_before_a_container_is_a_sign(
    tmp_path: Path, topic: str, event: Message, *, is_sign: bool
) -> None:
    async def signs() -> AsyncIterator[Envelope]:
        yield Envelope(0, "test", topic, common.pack(event))
        heard.set()

    heard = asyncio.Event()
    moves = CgroupMoves(procs := Procs(tmp_path / "procs"))
    moves.follow(signs())
    await asyncio.wait_for(heard.wait(), 20)
    if is_sign:
        await procs.pass_on()
    assert procs.taken == is_sign
    await moves.close()


@pytest.mark.root
async def test_a_real_move_leaves_the_process_where_it_is() -> None:
    before = Path("/proc/self/cgroup").read_text()
    assert str(os.getpid()) in Path(own_procs()).read_text().split()
    tried: list[str] = []

    def procs() -> str:
        tried.append(own_procs())
        return tried[-1]

    moves = CgroupMoves(procs)
    async with asyncio.timeout(20):
        for _ in iter(lambda: len(tried) < 2, False):  # the second shows that the first was possible
            moves.expect()
            await asyncio.sleep(0.001)
    await moves.close()
    assert Path("/proc/self/cgroup").read_text() == before
