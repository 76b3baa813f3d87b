"""Images checked against their digests, and mended: what is damaged is fetched again, and nothing else."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orlop.api.services.integrity.v1 import integrity_pb2 as api
from orlop.client.remote import Remote
from orlop.core import media
from orlop.core.descriptor import Descriptor
from orlop.core.image import Image
from orlop.core.integrity import Finding
from orlop.core.lease import Resource
from orlop.core.platform import host
from orlop.core.registry import RegistryOptions
from orlop.core.scope import Scope
from orlop.core.transfer import RegistryEnd, StoreEnd
from orlop.errors import NotFound
from orlop.images import documents

if TYPE_CHECKING:
    from orlop.client.client import Client


class Integrity(Remote):
    """Implements `core.integrity.Checker` over a channel."""

    service = api.DESCRIPTOR.services_by_name["Integrity"]

    async def check(
        self, scope: Scope, blobs: Sequence[str], layers: Sequence[str], *, discard: bool = False
    ) -> AsyncIterator[Finding]:
        request = api.CheckRequest(blobs=blobs, layers=layers, discard=discard)
        async for found in self._stream("Check", request, scope):
            is_blob = found.kind == api.Finding.BLOB
            yield Finding("blob" if is_blob else "layer", found.digest, found.problem, found.present)


@dataclass(slots=True)
class Condition:
    """What a check of an image found. `layers` are those of its manifests that are here, by diff id."""

    blobs: list[str] = field(default_factory=list)
    layers: dict[str, Descriptor] = field(default_factory=dict)
    problems: list[Finding] = field(default_factory=list)
    whole: int = 0

    @property
    def bad_layers(self) -> list[str]:
        return [finding.digest for finding in self.problems if finding.kind == "layer"]

    @property
    def bad_blobs(self) -> list[str]:
        return [finding.digest for finding in self.problems if finding.kind == "blob"]


async def verify(client: Client, image: Image) -> Condition:
    """Checks all that `image` is made of. A layer's blob may be absent where the layer itself is kept whole."""
    condition = Condition()
    await _document(client, image.target, condition, required=True)
    absent: dict[str, Finding] = {}
    blobs = {layer.digest: diff_id for diff_id, layer in condition.layers.items()}
    async for finding in client.integrity.check(client.scope, list(blobs), list(condition.layers)):
        if finding.kind == "blob" and not finding.present:
            absent[blobs[finding.digest]] = finding
        elif finding.kind == "layer" and finding.present and not finding.problem:
            absent.pop(finding.digest, None)
            condition.whole += 1
        else:
            _note(condition, finding)
    condition.problems += absent.values()
    condition.blobs += blobs
    return condition


async def _document(client: Client, target: Descriptor, condition: Condition, *, required: bool) -> None:
    """Checks the document `target`, and what it names if it is whole."""
    async for finding in client.integrity.check(client.scope, [target.digest], []):
        if not finding.present and not required:
            return  # of a platform that was never fetched
        _note(condition, finding)
        condition.blobs.append(target.digest)
        if finding.problem:
            return
    if media.is_index(target.media_type):
        index = await documents.read_index(client.content, client.scope, target)
        for entry in index.manifests:
            await _document(client, entry.noun(), condition, required=False)
    elif media.is_manifest(target.media_type):
        await _manifest(client, target, condition)


async def _manifest(client: Client, target: Descriptor, condition: Condition) -> None:
    manifest = await documents.read_manifest(client.content, client.scope, target)
    config = manifest.config.noun()
    before = len(condition.problems)
    await _document(client, config, condition, required=True)
    if len(condition.problems) > before or config.media_type not in media.KNOWN_CONFIGS:
        return
    diff_ids = (await documents.read_config(client.content, client.scope, config)).rootfs.diff_ids
    layers = [layer.noun() for layer in manifest.layers]
    condition.layers |= dict(zip(diff_ids, layers, strict=False))


def _note(condition: Condition, finding: Finding) -> None:
    if finding.problem:
        condition.problems.append(finding)
    elif finding.present:
        condition.whole += 1


async def repair(client: Client, image: Image, condition: Condition, options: RegistryOptions | None = None) -> None:
    """Makes whole what `condition` says is damaged: blobs come from the registry, kept layers from their blobs."""
    async with client.lease() as scope:
        # What the damaged documents name must not be collected meanwhile.
        for digest in condition.blobs:
            if digest not in condition.bad_blobs:
                await _hold(client, scope, digest)
        needed = [condition.layers[diff_id].digest for diff_id in condition.bad_layers]
        present = {info.digest for info in await client.content.list(scope)}
        async for _ in client.integrity.check(scope, condition.bad_blobs, condition.bad_layers, discard=True):
            continue
        if condition.bad_blobs or any(digest not in present for digest in needed):
            # By its digest: the tag may stand for another image by now.
            reference = image.name if "@" in image.name else f"{image.name}@{image.target.digest}"
            end = StoreEnd(image.name, platforms=[host()])
            await client.transfer.pull(scope, RegistryEnd(reference, options or RegistryOptions()), end)
        for diff_id in condition.bad_layers:
            await _apply(client, scope, condition.layers[diff_id], diff_id)


async def _hold(client: Client, scope: Scope, digest: str) -> None:
    try:
        await client.leases.add_resource(scope, scope.lease, Resource("content", digest))
    except NotFound:
        return


async def _apply(client: Client, scope: Scope, layer: Descriptor, diff_id: str) -> None:
    """Applies `layer` once more: a snapshotter that keeps it takes the new files instead of the damaged ones."""
    snapshotter = await client.snapshotter()
    key = f"repair-{os.urandom(6).hex()} {diff_id}"
    mounts = await client.snapshots.prepare(scope, snapshotter, key)
    try:
        await client.differ.apply(scope, layer, mounts)
    finally:
        await client.snapshots.remove(scope, snapshotter, key)
