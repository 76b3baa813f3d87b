"""Layers that are made while their blobs are written: there when they are applied, and gone when nobody does."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import random
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard
from layer_world import SCOPE, Layered, layered

from orlop import faults
from orlop.content.local import LocalStore
from orlop.core import digest as digests
from orlop.core.content import Reader, Writer
from orlop.core.descriptor import Descriptor
from orlop.core.scope import Scope
from orlop.errors import FailedPrecondition
from orlop.layers import ahead as layers_ahead
from orlop.layers import media
from orlop.layers.ahead import LayersAhead
from orlop.layers.compression import Limits
from orlop.layers.differ import WalkingDiffer
from orlop.layers.keep import Keepers
from orlop.mounts.temporary import TemporaryMounts

DATA = random.Random(5).randbytes(3 << 20)
PIECE = 1 << 18


def tar_of(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo("file")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


TAR = tar_of(DATA)
GZIP = gzip.compress(TAR, 1, mtime=0)


@dataclass
class Store:
    """Blobs of which nobody is allowed to read more than `readable`."""

    backend: LocalStore
    readable: bool = True

    async def open_reader(self, scope: Scope, digest: str) -> Reader:
        reader = await self.backend.open_reader(digest)
        return reader if self.readable else _Unreadable(reader)


class _Unreadable:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._empty = os.memfd_create("empty")
        self.size = reader.size

    async def read(self, offset: int, size: int) -> bytes:
        raise AssertionError("the blob is read")

    def fileno(self) -> int:
        return self._empty

    async def close(self) -> None:
        os.close(self._empty)
        await self._reader.close()


@dataclass
class World:
    layered: Layered
    store: Store
    ahead: LayersAhead
    differ: WalkingDiffer

    async def writer(self, ref: str = "ref") -> Writer:
        return self.ahead.watched(await self.store.backend.open_writer(ref))

    async def write(self, blob: bytes, media_type: str = media.OCI_LAYER_GZIP, ref: str = "ref") -> Descriptor:
        """Stores the blob as a client does."""
        writer = await self.writer(ref)
        try:
            await put(writer, blob)
            info = await writer.commit(len(blob), digests.of(blob))
        finally:
            await writer.close()
        return Descriptor(media_type, info.digest, info.size)

    async def applied(self, layer: Descriptor, name: str = "layer", parent: str = "") -> Descriptor:
        done = await self.differ.apply(SCOPE, layer, await self.layered.driver.prepare(f"make-{name}", parent))
        await self.layered.driver.commit(name, f"make-{name}")
        return done

    @property
    def sources(self) -> int:
        rows = self.layered.driver._records
        with rows.transaction() as connection:
            return int(connection.execute("SELECT count(*) FROM layer_sources").fetchone()[0])


async def put(writer: Writer, blob: bytes) -> None:
    for start in range(0, len(blob), PIECE):
        await writer.write(blob[start : start + PIECE])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.to_thread(time.sleep, 0.01)


def threads() -> int:
    return sum(thread.name.startswith("layer-") for thread in threading.enumerate())


@pytest.fixture
def world(indexable: None, tmp_path: Path, temporary: TemporaryMounts) -> Iterator[World]:
    (tmp_path / "content").mkdir()
    backend = LocalStore(tmp_path / "content")
    with layered(tmp_path / "world", temporary) as made:
        keepers = Keepers([made.driver])
        ahead = LayersAhead(keepers, Limits(), 1000, life=30)
        store = Store(backend)
        yield World(made, store, ahead, WalkingDiffer(store, temporary, keepers=keepers, watcher=ahead))  # type: ignore[arg-type]
        asyncio.run(ahead.close())
        assert not threads()
    backend.close()


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_ahead, "FREE", 1 << 40)


@pytest.mark.parametrize(
    ("media_type", "blob"),
    [
        (media.OCI_LAYER_GZIP, GZIP),
        (media.OCI_LAYER_ZSTD, zstandard.compress(TAR)),
        (media.OCI_LAYER, TAR),
        ("application/vnd.docker.image.rootfs.diff.tar", TAR),
    ],
    ids=["gzip", "zstd", "tar", "tar of docker"],
)
async def test_a_layer_is_made_before_it_is_applied(
    world: World, temporary: TemporaryMounts, media_type: str, blob: bytes
) -> None:
    layer = await world.write(blob, media_type)
    world.store.readable = False
    assert await world.applied(layer) == Descriptor(media.OCI_LAYER, digests.of(TAR), len(TAR))
    assert world.layered.kept == ["1"]
    with temporary.mounted(await world.layered.driver.view("v", "layer")) as root:
        assert Path(root, "file").read_bytes() == DATA
    for key in ("v", "layer"):
        await world.layered.driver.remove(key)
    await world.layered.driver.cleanup()
    assert world.layered.kept == []  # it is not kept for longer than other layers, once somebody has had it


async def test_who_applies_while_it_is_made_waits_for_it(world: World) -> None:
    faults.arm("layers.ahead.made", "1*delay(300)")
    try:
        layer = await world.write(GZIP)
        world.store.readable = False
        assert (await world.applied(layer)).digest == digests.of(TAR)
    finally:
        faults.disarm()


def several(count: int) -> list[bytes]:
    return [gzip.compress(tar_of(DATA[number:]), 1) for number in range(count)]


async def test_more_than_there_are_processors_for_wait_for_their_turn(world: World) -> None:
    world.ahead._at_once = 1
    blobs = several(4)
    writers = [await world.writer(str(number)) for number in range(len(blobs))]
    for writer, blob in zip(writers, blobs, strict=True):
        await put(writer, blob)
        assert sum(thread.name == "layer-ahead" for thread in threading.enumerate()) == 1
    layers = [await writer.commit(len(blob)) for writer, blob in zip(writers, blobs, strict=True)]
    await until(lambda: not threads())
    assert world.sources == len(blobs)
    world.store.readable = False
    parent = ""
    for number, layer in enumerate(layers):
        descriptor = Descriptor(media.OCI_LAYER_GZIP, layer.digest, layer.size)
        await world.applied(descriptor, str(number), parent)
        parent = str(number)
    await world.layered.driver.cleanup()
    assert world.layered.kept == ["1", "2", "3", "4"]


async def test_who_applies_one_that_waits_makes_it_by_himself(world: World) -> None:
    world.ahead._at_once = 1
    stalled = await world.writer("stalled")
    await put(stalled, GZIP[:-PIECE])
    layer = await world.write(several(1)[0] + b"\0", ref="waits")
    assert (await world.applied(layer)).digest == digests.of(TAR)
    assert not world.ahead._waiting
    await stalled.close()


async def test_those_that_wait_leave_nothing_open(world: World) -> None:
    world.ahead._at_once = 1
    before = len(os.listdir("/proc/self/fd"))
    writers = [await world.writer(str(number)) for number in range(3)]
    for writer in writers:
        await put(writer, GZIP[:-PIECE])
    await writers[1].close()
    await world.ahead.close()
    await writers[0].close()
    await writers[2].close()
    assert not world.ahead._waiting
    assert len(os.listdir("/proc/self/fd")) == before


async def test_one_that_cannot_be_made_is_made_when_it_is_applied(world: World) -> None:
    for fault in ("layers.ahead.made=error(EIO)", "snapshots.layers.synced=1*error(ENOSPC)"):
        faults.arm_from_environment(fault)
        try:
            layer = await world.write(GZIP)
            await until(lambda: not threads())
        finally:
            faults.disarm()
        assert world.layered.kept == []
        assert (await world.applied(layer)).digest == digests.of(TAR)
        await world.layered.driver.remove("layer")
        await world.layered.driver.cleanup()
        await world.store.backend.delete(layer.digest)


async def test_a_blob_that_is_not_committed_becomes_no_layer(world: World) -> None:
    writer = await world.writer()
    await put(writer, GZIP)
    with pytest.raises(FailedPrecondition):
        await writer.commit(len(GZIP), digests.of(b"other"))
    await writer.close()
    writer = await world.writer("left")
    await put(writer, GZIP[:-PIECE])
    await until(lambda: threads() > 0)
    await writer.close()
    await until(lambda: not threads())
    assert (world.layered.kept, world.sources) == ([], 0)


async def test_a_write_that_begins_again_is_followed_from_its_beginning(world: World) -> None:
    writer = await world.writer()
    await put(writer, GZIP[:-PIECE])
    await writer.truncate(0)
    other = gzip.compress(tar_of(DATA[::-1]), 1)
    await put(writer, other)
    info = await writer.commit()
    await writer.close()
    world.store.readable = False
    done = await world.applied(Descriptor(media.OCI_LAYER_GZIP, info.digest, info.size))
    assert done.digest == digests.of(tar_of(DATA[::-1]))


async def test_an_ingest_that_goes_on_is_followed_from_its_beginning(world: World) -> None:
    writer = await world.writer()
    await put(writer, GZIP[: 2 << 20])
    await writer.close()
    writer = await world.writer()
    await put(writer, GZIP[2 << 20 :])
    info = await writer.commit(len(GZIP), digests.of(GZIP))
    await writer.close()
    world.store.readable = False
    assert (await world.applied(Descriptor(media.OCI_LAYER_GZIP, info.digest, 0))).digest == digests.of(TAR)


@pytest.mark.parametrize("blob", [DATA, gzip.compress(DATA, 1), GZIP[:-9], zstandard.compress(DATA)])
async def test_what_is_no_layer_leaves_nothing(world: World, blob: bytes) -> None:
    await world.write(blob)
    await until(lambda: not threads())
    assert (world.layered.kept, world.sources) == ([], 0)


async def test_what_nobody_asks_for_goes_and_is_not_made_for_ever(world: World) -> None:
    world.ahead.life = 0.05
    for number in range(layers_ahead.UNASKED_LIMIT):
        await world.write(gzip.compress(tar_of(DATA + bytes([number])), 1), ref=str(number))
        await until(lambda: not threads() and world.sources == 0 and not world.ahead._timers)
        await until(lambda: world.layered.kept == [])
    world.ahead.life = 30
    layer = await world.write(GZIP)
    assert not threads()
    await world.applied(layer)
    await world.write(gzip.compress(tar_of(DATA[1:]), 1), ref="after")
    await until(lambda: world.sources == 2)


async def test_what_a_crash_leaves_of_it_is_removed_at_the_next_start(
    world: World, tmp_path: Path, temporary: TemporaryMounts
) -> None:
    await world.write(GZIP)
    await until(lambda: not threads())
    await world.layered.driver.cleanup()
    assert world.layered.kept == ["1"]
    with layered(tmp_path / "world", temporary) as again:
        await again.driver.cleanup()
        assert again.kept == []


async def test_nothing_is_made_on_a_disk_that_is_nearly_full(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_ahead, "FREE", 1)
    layer = await world.write(GZIP)
    await until(lambda: not threads())
    assert world.layered.kept == []
    assert (await world.applied(layer)).digest == digests.of(TAR)


async def test_a_client_that_stalls_does_not_hold_up_the_end(world: World) -> None:
    writer = await world.writer()
    await put(writer, GZIP[:-PIECE])
    await until(lambda: threads() > 0)
    async with asyncio.timeout(30):
        await world.ahead.close()
    assert not threads()
    with suppress(FailedPrecondition):
        await put(writer, GZIP[-PIECE:])
    await writer.commit(len(GZIP), digests.of(GZIP))
    await writer.close()
    assert world.layered.kept == []
