"""Unpacking images, with a differ and snapshots that remember what was asked of them."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from images_world import ARCHITECTURE, NS, World, described, encoded, layout, named, small_image, world

from orlop.core import digest as digests
from orlop.core import media
from orlop.core.descriptor import Descriptor
from orlop.core.mount import Mount
from orlop.core.platform import Platform
from orlop.core.scope import Scope
from orlop.core.snapshot import Kind, SnapshotInfo
from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unknown
from orlop.images import unpack

HERE = Platform("linux", ARCHITECTURE)
LAYERS = [gzip.compress(text) for text in (b"one", b"two", b"three")]
DIFF_IDS = [digests.of(text) for text in (b"one", b"two", b"three")]


class Snapshots:
    """A store of one snapshotter, in memory."""

    def __init__(self) -> None:
        self.infos: dict[str, SnapshotInfo] = {}
        self.prepared = 0
        self.remote: set[str] = set()

    async def prepare(
        self, scope: Scope, snapshotter: str, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        labels = dict(labels or {})
        name = labels[unpack.REF]
        if name in self.remote:
            self.infos[name] = SnapshotInfo(name, Kind.COMMITTED, parent, labels)
            raise AlreadyExists(f"snapshot {name}")
        self.prepared += 1
        self.infos[key] = SnapshotInfo(key, Kind.ACTIVE, parent, labels)
        return [Mount("bind", f"/x/{key}")]

    async def commit(
        self,
        scope: Scope,
        snapshotter: str,
        name: str,
        key: str,
        labels: Mapping[str, str] | None = None,
        parent: str = "",
    ) -> None:
        if name in self.infos:
            raise AlreadyExists(f"snapshot {name}")
        active = self.infos.pop(key)
        self.infos[name] = SnapshotInfo(name, Kind.COMMITTED, active.parent, dict(labels or {}))

    async def stat(self, scope: Scope, snapshotter: str, key: str) -> SnapshotInfo:
        if key not in self.infos:
            raise NotFound(f"snapshot {key}")
        return self.infos[key]

    async def remove(self, scope: Scope, snapshotter: str, key: str) -> None:
        del self.infos[key]


class Differ:
    """Its diff id is the digest of what it decompresses."""

    def __init__(self, content: Any) -> None:
        self.content = content
        self.applied: list[str] = []
        self.gate: asyncio.Event | None = None
        self.reached = asyncio.Event()
        self.wrong = False

    async def apply(self, scope: Scope, layer: Descriptor, mounts: list[Mount]) -> Descriptor:
        self.applied.append(layer.digest)
        self.reached.set()
        if self.gate is not None:
            await self.gate.wait()
        reader = await self.content.open_reader(scope, layer.digest)
        data = gzip.decompress(await reader.read(0, layer.size))
        await reader.close()
        return Descriptor(media.OCI_LAYER, digests.of(b"wrong" if self.wrong else data), len(data))


class Bench:
    def __init__(self, w: World) -> None:
        self.w = w
        self.snapshots: Any = Snapshots()
        self.differ: Any = Differ(w.content)

    async def load(self, blobs: list[bytes], without: int | None = None) -> Descriptor:
        kept = [blob for number, blob in enumerate(blobs) if number != without]
        [image] = await self.w.load(layout(named(described(blobs[0], media.OCI_MANIFEST)), kept))
        return image.target

    async def unpack(self, target: Descriptor) -> str:
        return await unpack.unpack(self.w.content, self.snapshots, self.differ, NS, target, HERE, "sn")


def test_chain_ids_are_those_of_the_image_specification() -> None:
    one, two, three = DIFF_IDS
    second = "sha256:" + hashlib.sha256(f"{one} {two}".encode()).hexdigest()
    third = "sha256:" + hashlib.sha256(f"{second} {three}".encode()).hexdigest()
    assert unpack.chain_ids(DIFF_IDS) == [one, second, third]
    assert unpack.chain_ids([]) == []


async def test_layers_become_a_chain_of_labelled_snapshots_that_the_config_keeps(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        bench = Bench(w)
        blobs = small_image(layers=LAYERS)
        top = await bench.unpack(await bench.load(blobs))
        chain = unpack.chain_ids(DIFF_IDS)
        assert top == chain[-1]
        parents = ["", *chain[:-1]]
        assert [bench.snapshots.infos[name] for name in chain] == [
            SnapshotInfo(
                name,
                Kind.COMMITTED,
                parent,
                {unpack.REF: name, unpack.DIFF_ID: diff_id} | ({unpack.PARENT: parent} if parent else {}),
            )
            for name, parent, diff_id in zip(chain, parents, DIFF_IDS, strict=True)
        ]
        assert len(bench.snapshots.infos) == 3
        assert (await w.labels(digests.of(blobs[1])))["containerd.io/gc.ref.snapshot.sn"] == top
        for layer, diff_id in zip(LAYERS, DIFF_IDS, strict=True):
            assert (await w.labels(digests.of(layer)))["containerd.io/uncompressed"] == diff_id


async def test_unpacking_again_asks_for_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        bench = Bench(w)
        target = await bench.load(small_image(layers=LAYERS))
        top = await bench.unpack(target)
        assert await bench.unpack(target) == top
        assert bench.snapshots.prepared == len(bench.differ.applied) == 3


async def test_only_layers_above_a_shared_part_are_unpacked(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        bench = Bench(w)
        await bench.unpack(await bench.load(small_image(layers=LAYERS[:2])))
        await bench.unpack(await bench.load(small_image(layers=LAYERS)))
        assert bench.differ.applied == [digests.of(layer) for layer in LAYERS]


async def test_an_image_of_no_layers_has_no_snapshot(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        bench = Bench(w)
        blobs = small_image()
        assert await bench.unpack(await bench.load(blobs)) == ""
        assert not bench.snapshots.infos
        assert "containerd.io/gc.ref.snapshot.sn" not in await w.labels(digests.of(blobs[1]))


async def test_a_wrong_diff_id_leaves_no_snapshot(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        bench = Bench(w)
        target = await bench.load(small_image(layers=LAYERS[:1]))
        bench.differ.wrong = True
        with pytest.raises(FailedPrecondition) as error:
            await bench.unpack(target)
        assert f'wrong diff id "{digests.of(b"wrong")}" calculated on extraction "{DIFF_IDS[0]}"' in str(error.value)
        assert f"failed to extract layer ({media.OCI_LAYER_GZIP} {digests.of(LAYERS[0])}) to sn as " in str(error.value)
        assert not bench.snapshots.infos


async def test_a_layer_that_is_missing_is_named_and_leaves_no_snapshot(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        bench = Bench(w)
        target = await bench.load(small_image(layers=LAYERS), without=3)
        with pytest.raises(NotFound, match=f"failed to extract layer .*{digests.of(LAYERS[1])}: not found$"):
            await bench.unpack(target)
        assert list(bench.snapshots.infos) == DIFF_IDS[:1]


async def test_other_errors_of_a_differ_keep_their_kind_and_leave_no_snapshot(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        bench = Bench(w)
        target = await bench.load(small_image(layers=LAYERS))

        async def apply(*_: object) -> Descriptor:
            raise Unknown("unexpected EOF")

        bench.differ.apply = apply
        with pytest.raises(Unknown, match=r"failed to extract layer .*: unexpected EOF$"):
            await bench.unpack(target)
        assert not bench.snapshots.infos


async def test_an_unpack_that_is_cancelled_leaves_no_snapshot(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        bench = Bench(w)
        target = await bench.load(small_image(layers=LAYERS))
        bench.differ.gate = asyncio.Event()
        task = asyncio.ensure_future(bench.unpack(target))
        await bench.differ.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not bench.snapshots.infos


async def test_two_that_unpack_the_same_layer_both_succeed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        bench = Bench(w)
        target = await bench.load(small_image(layers=LAYERS))
        tops = await asyncio.gather(bench.unpack(target), bench.unpack(target))
        assert set(tops) == {unpack.chain_ids(DIFF_IDS)[-1]}
        assert all(info.kind == Kind.COMMITTED for info in bench.snapshots.infos.values())


async def test_a_snapshotter_that_has_a_layer_elsewhere_is_not_given_it(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        bench = Bench(w)
        bench.snapshots.remote = set(unpack.chain_ids(DIFF_IDS)[:2])
        await bench.unpack(await bench.load(small_image(layers=LAYERS)))
        assert bench.differ.applied == [digests.of(LAYERS[2])]


async def test_a_config_with_other_than_a_diff_id_for_each_layer_is_refused(tmp_path: Path) -> None:
    config = encoded({"os": "linux", "architecture": ARCHITECTURE, "rootfs": {"diff_ids": DIFF_IDS[:2]}})
    manifest = encoded(
        {
            "schemaVersion": 2,
            "config": described(config, media.OCI_CONFIG),
            "layers": [described(LAYERS[0], media.OCI_LAYER_GZIP)],
        }
    )
    async with world(tmp_path) as w:
        bench = Bench(w)
        with pytest.raises(InvalidArgument, match="2 diff ids for 1 layers"):
            await bench.unpack(await bench.load([manifest, config, LAYERS[0]]))
        assert not bench.snapshots.infos
