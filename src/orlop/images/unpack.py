"""Unpacking: an image's layers as a chain of committed snapshots."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from orlop.core import clock
from orlop.core.content import ContentInfo, ContentStore
from orlop.core.descriptor import Descriptor
from orlop.core.diff import LOOSE, Differ, NeedsLower
from orlop.core.group import group_of_tasks
from orlop.core.labels import UNCOMPRESSED
from orlop.core.mount import Mount
from orlop.core.platform import Platform
from orlop.core.scope import Scope
from orlop.core.snapshot import EXTRACTION, SnapshotStore
from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OrlopError
from orlop.images import documents, select

REF = "containerd.io/snapshot.ref"
DIFF_ID = "containerd.io/snapshot/diff-id"
PARENT = "containerd.io/snapshot/parent-chain-id"

INHERITED = "containerd.io/snapshot/"
"""Annotations of a layer that become labels of its snapshot, for snapshotters that fetch it themselves."""
_NOT_INHERITED = frozenset({f"{INHERITED}uidmapping", f"{INHERITED}gidmapping"})

Apply = Callable[[int, Sequence[Mount]], Awaitable[Descriptor]]
"""Applies the layer of that number to mounts, as `core.diff.Differ.apply`: the layer need not have arrived before."""


@dataclass(frozen=True, slots=True)
class Chain:
    """An image's layers, bottom first: what each becomes when it is unpacked (`diff_ids`), and the names of the
    snapshots that hold all layers up to each one (`ids`)."""

    config: Descriptor
    layers: Sequence[Descriptor]
    diff_ids: Sequence[str]
    ids: Sequence[str]

    @classmethod
    def of(cls, config: Descriptor, layers: Sequence[Descriptor], diff_ids: Sequence[str]) -> Chain:
        """Raises InvalidArgument where there is not one diff id for each layer."""
        if len(diff_ids) != len(layers):
            raise InvalidArgument(f"image config {config.digest}: {len(diff_ids)} diff ids for {len(layers)} layers")
        return cls(config, layers, diff_ids, chain_ids(diff_ids))

    def labels(self, number: int) -> dict[str, str]:
        """The labels of a layer's snapshot."""
        inherited = {
            key: value
            for key, value in self.layers[number].annotations.items()
            if key.startswith(INHERITED) and key not in _NOT_INHERITED
        }
        parent = {PARENT: self.ids[number - 1]} if number else {}
        return inherited | {REF: self.ids[number], DIFF_ID: self.diff_ids[number]} | parent


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The names of the snapshots that hold the layers up to each one (OCI image-spec, config.md, ChainID)."""
    chain: list[str] = []
    for diff_id in diff_ids:
        if chain:
            chain.append("sha256:" + hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest())
        else:
            chain.append(diff_id)
    return chain


async def unpack(
    content: ContentStore,
    snapshots: SnapshotStore,
    differ: Differ,
    scope: Scope,
    target: Descriptor,
    platform: Platform,
    snapshotter: str,
) -> str:
    """Unpacks what `target` has for `platform` and returns the chain id of the whole.

    Layers that are there already are left alone. The config is labelled so that it keeps the snapshots alive. Raises
    FailedPrecondition if a layer is not what the config says.
    """
    _, manifest = await select.manifest_for(content, scope, target, platform)
    config = manifest.config.noun()
    layers = [layer.noun() for layer in manifest.layers]
    chain = Chain.of(config, layers, (await documents.read_config(content, scope, config)).rootfs.diff_ids)

    async def apply(number: int, mounts: Sequence[Mount]) -> Descriptor:
        return await differ.apply(scope, layers[number], mounts)

    return await unpack_chain(content, snapshots, scope, chain, snapshotter, apply)


async def _ignore(_: int) -> None:
    return


async def unpack_chain(
    content: ContentStore,
    snapshots: SnapshotStore,
    scope: Scope,
    chain: Chain,
    snapshotter: str,
    apply: Apply,
    at_once: int = 1,
    *,
    marks: Mapping[str, str] | None = None,
    present: Callable[[int], Awaitable[None]] = _ignore,
) -> str:
    """Unpacks the layers of `chain` that are not there by `apply`, as `unpack`.

    `at_once`: so many at a time, each beside the others and put in its place when those below are done. The snapshotter
    must be able to give a snapshot its parent at its commit (capability `rebase`). `marks` are labels that snapshots
    have only while they are filled. `present` is told of each layer whose snapshot is there already.
    """
    async with group_of_tasks() as labelling:
        unpacking = _Unpacking(content, snapshots, scope, chain, snapshotter, apply, marks or {}, present, labelling)
        if at_once > 1:
            await unpacking.together(at_once)
        else:
            for number in range(len(chain.layers)):
                await unpacking.layer(number)
    top = chain.ids[-1] if chain.ids else ""
    await _label(content, scope, chain.config.digest, {f"containerd.io/gc.ref.snapshot.{snapshotter}": top})
    return top


class _Slots(asyncio.Semaphore):
    """How many layers may be filled at a time, and whether that works for this image without those below them."""

    loose_work = True


class _Place:
    """A layer's place above others: `ready` when those are there, `done` when it is there itself.

    One that `is_loose` is filled before, by itself, for which it waits for one of the `slots`.
    """

    def __init__(
        self, slots: _Slots | None = None, ready: asyncio.Event | None = None, *, is_loose: bool = False
    ) -> None:
        self.slots = slots or _Slots(1)
        self.ready = ready or asyncio.Event()
        self.done = asyncio.Event()
        self.is_loose = is_loose
        if ready is None:
            self.ready.set()


def _overlaid(mounts: Sequence[Mount]) -> Sequence[Mount]:
    """A directory as the upper one of an overlay: what a layer takes away is marked there, although nothing is below
    it yet."""
    if len(mounts) != 1 or mounts[0].type != "bind":
        raise NeedsLower("a layer without those below it, on anything but a directory")
    options = [option for option in mounts[0].options if option not in ("rbind", "bind")]
    return [Mount("overlay", "overlay", (*options, f"upperdir={mounts[0].source}", LOOSE))]


@dataclass(frozen=True, slots=True)
class _Unpacking:
    content: ContentStore
    snapshots: SnapshotStore
    scope: Scope
    chain: Chain
    snapshotter: str
    apply: Apply
    marks: Mapping[str, str]
    present: Callable[[int], Awaitable[None]]
    labelling: asyncio.TaskGroup
    """No layer waits for the labels of the one before."""

    async def layer(self, number: int) -> None:
        """Makes the snapshot of a layer above those below, if it is not there."""
        if not await self._is_there(number):
            await self._make(number, self.chain.ids[number - 1] if number else "", _Place())

    async def together(self, at_once: int) -> None:
        """Makes the snapshots of all layers that are not there."""
        first = 0
        while first < len(self.chain.ids) and await self._is_there(first):
            first += 1
        slots = _Slots(at_once)
        below = asyncio.Event()
        below.set()
        async with group_of_tasks() as group:
            for number in range(first, len(self.chain.ids)):
                place = _Place(slots, below, is_loose=number > first)
                group.create_task(self._in_place(number, place))
                below = place.done

    async def _in_place(self, number: int, place: _Place) -> None:
        async with place.slots:
            is_loose = place.is_loose and place.slots.loose_work
        try:
            if not is_loose:
                await place.ready.wait()
                await self.layer(number)
            elif not await self._is_there(number):
                await self._make(number, "", place)
        except NeedsLower:
            # Those that have begun may succeed; the others are as this one, most likely, and are not tried in vain.
            place.slots.loose_work = False
            await place.ready.wait()
            await self.layer(number)
        place.done.set()

    async def _make(self, number: int, parent: str, place: _Place) -> None:
        chain_id = self.chain.ids[number]
        labels = self.chain.labels(number)
        key = f"{EXTRACTION}{clock.now() % 1_000_000_000}-{os.urandom(2).hex()} {chain_id}"
        below = self.chain.ids[number - 1] if place.is_loose else ""
        async with place.slots:
            try:
                mounts = await self.snapshots.prepare(
                    self.scope, self.snapshotter, key, parent, {**labels, **self.marks}
                )
            except AlreadyExists:
                # A snapshotter that had it somewhere else.
                await self.snapshots.stat(self.scope, self.snapshotter, chain_id)
                await self.present(number)
                return
            except asyncio.CancelledError:
                await asyncio.shield(self._discard(key))  # a call that is cancelled ends all the same
                raise
            try:
                await self._fill(number, key, _overlaid(mounts) if place.is_loose else mounts)
            except BaseException:
                await asyncio.shield(self._discard(key))
                raise
        try:
            await place.ready.wait()
            try:
                await self.snapshots.commit(self.scope, self.snapshotter, chain_id, key, labels, parent=below)
            except AlreadyExists:
                await self._discard(key)  # somebody else was faster
        except BaseException:
            await asyncio.shield(self._discard(key))
            raise
        labels = {UNCOMPRESSED: self.chain.diff_ids[number]}
        self.labelling.create_task(_label(self.content, self.scope, self.chain.layers[number].digest, labels))

    async def _is_there(self, number: int) -> bool:
        try:
            await self.snapshots.stat(self.scope, self.snapshotter, self.chain.ids[number])
        except NotFound:
            return False
        await self.present(number)
        return True

    async def _fill(self, number: int, key: str, mounts: Sequence[Mount]) -> None:
        layer, diff_id = self.chain.layers[number], self.chain.diff_ids[number]
        what = f'failed to extract layer ({layer.media_type} {layer.digest}) to {self.snapshotter} as "{key}"'
        try:
            applied = await self.apply(number, mounts)
        except OrlopError as error:
            raise error.within(what) from error
        if applied.digest != diff_id:
            raise FailedPrecondition(f'{what}: wrong diff id "{applied.digest}" calculated on extraction "{diff_id}"')

    async def _discard(self, key: str) -> None:
        try:
            await self.snapshots.remove(self.scope, self.snapshotter, key)
        except NotFound:
            return


async def _label(content: ContentStore, scope: Scope, digest: str, labels: Mapping[str, str]) -> None:
    await content.update(scope, ContentInfo(digest, 0, labels=labels), [f"labels.{key}" for key in labels])
