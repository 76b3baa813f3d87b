"""Unpacking: an image's layers as a chain of committed snapshots."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence

from orlop.core import clock
from orlop.core.content import ContentInfo, ContentStore
from orlop.core.descriptor import Descriptor
from orlop.core.diff import Differ
from orlop.core.labels import UNCOMPRESSED
from orlop.core.platform import Platform
from orlop.core.scope import Scope
from orlop.core.snapshot import SnapshotStore
from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OrlopError
from orlop.images import documents, select

REF = "containerd.io/snapshot.ref"
DIFF_ID = "containerd.io/snapshot/diff-id"
PARENT = "containerd.io/snapshot/parent-chain-id"


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
    diff_ids = (await documents.read_config(content, scope, config)).rootfs.diff_ids
    if len(diff_ids) != len(manifest.layers):
        raise InvalidArgument(
            f"image config {config.digest}: {len(diff_ids)} diff ids for {len(manifest.layers)} layers"
        )
    chain = chain_ids(diff_ids)
    parent = ""
    for layer, diff_id, chain_id in zip(manifest.layers, diff_ids, chain, strict=True):
        await _unpack_layer(content, snapshots, differ, scope, layer.noun(), diff_id, chain_id, parent, snapshotter)
        parent = chain_id
    await _label(content, scope, config.digest, f"containerd.io/gc.ref.snapshot.{snapshotter}", parent)
    return parent


async def _unpack_layer(
    content: ContentStore,
    snapshots: SnapshotStore,
    differ: Differ,
    scope: Scope,
    layer: Descriptor,
    diff_id: str,
    chain_id: str,
    parent: str,
    snapshotter: str,
) -> None:
    try:
        await snapshots.stat(scope, snapshotter, chain_id)
    except NotFound:
        pass
    else:
        return
    labels = {REF: chain_id, DIFF_ID: diff_id} | ({PARENT: parent} if parent else {})
    key = f"extract-{clock.now() % 1_000_000_000}-{os.urandom(2).hex()} {chain_id}"
    try:
        mounts = await snapshots.prepare(scope, snapshotter, key, parent, labels)
    except AlreadyExists:
        await snapshots.stat(scope, snapshotter, chain_id)  # a snapshotter that had it somewhere else
        return
    what = f'failed to extract layer ({layer.media_type} {layer.digest}) to {snapshotter} as "{key}"'
    try:
        try:
            applied = await differ.apply(scope, layer, mounts)
        except OrlopError as error:
            raise error.within(what) from error
        if applied.digest != diff_id:
            raise FailedPrecondition(f'{what}: wrong diff id "{applied.digest}" calculated on extraction "{diff_id}"')
        try:
            await snapshots.commit(scope, snapshotter, chain_id, key, labels)
        except AlreadyExists:
            await _discard(snapshots, scope, snapshotter, key)  # somebody else was faster
    except BaseException:
        await asyncio.shield(_discard(snapshots, scope, snapshotter, key))
        raise
    await _label(content, scope, layer.digest, UNCOMPRESSED, diff_id)


async def _discard(snapshots: SnapshotStore, scope: Scope, snapshotter: str, key: str) -> None:
    try:
        await snapshots.remove(scope, snapshotter, key)
    except NotFound:
        return


async def _label(content: ContentStore, scope: Scope, digest: str, key: str, value: str) -> None:
    await content.update(scope, ContentInfo(digest, 0, labels={key: value}), [f"labels.{key}"])
