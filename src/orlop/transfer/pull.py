"""Pull: from a registry into the image store.

Documents are walked from the root down. Each manifest whose config a snapshotter takes is unpacked while its layers
arrive: a layer is written to its ingest, and read there by the differ at the same time. Nothing has a name before all
of it is here, checked and unpacked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orlop.core import media
from orlop.core.content import ContentInfo
from orlop.core.descriptor import Descriptor
from orlop.core.diff import NeedsLower, StreamDiffer
from orlop.core.group import group_of_tasks
from orlop.core.image import Image
from orlop.core.labels import MAX_SIZE
from orlop.core.lease import Resource
from orlop.core.mount import Mount
from orlop.core.reference import Reference
from orlop.core.registry import Registries, Repository
from orlop.core.scope import Scope
from orlop.core.transfer import Progress, RegistryEnd, Report, StoreEnd
from orlop.core.verifier import ImageVerifier
from orlop.errors import InvalidArgument, NotFound, OrlopError, Unimplemented, Unknown
from orlop.images import children, documents, legacy_manifest, select, unpack
from orlop.transfer import naming, progress
from orlop.transfer.arrival import Arrival
from orlop.transfer.fetch import Fetches, Origin
from orlop.transfer.locks import Locks
from orlop.transfer.progress import Tracker
from orlop.transfer.stores import Stores
from orlop.transfer.unpacking import MARKS, Unpacks, UnpackTarget

_log = logging.getLogger(__name__)

_REMOTE = f"{unpack.INHERITED}cri."
MAX_DOCUMENTS = 2_000
"""Indexes and manifests of one image that are fetched."""


@dataclass(frozen=True, slots=True)
class Puller:
    """Pulls, one image a call."""

    stores: Stores
    registries: Registries
    fetches: Fetches
    targets: Sequence[UnpackTarget]
    verifiers: Mapping[str, ImageVerifier]
    locks: Locks = field(default_factory=Locks)

    async def pull(self, scope: Scope, source: RegistryEnd, end: StoreEnd, report: Report) -> list[Image]:
        """Returns the images stored. What a pull that fails has brought is kept a day for the next one."""
        shown = f"OCI Registry ({source.reference})"
        report(Progress(f"Resolving from {shown}"))
        repository = self.registries.repository(source.reference, source.options)
        try:
            target = await self._resolve(repository, source.reference)
            report(Progress(f"Pulling from {shown}"))
            report(Progress("fetching image content", source.reference, descriptor=target))
            async with self.stores.leased(scope) as leased:
                origin = Origin(leased, repository, Reference.parse(source.reference))
                tracker = Tracker(report, source.reference, "downloading")
                bringing = _Pull(self, origin, end, Unpacks.of(end.unpacks, self.targets), tracker)
                try:
                    async with tracker.running():
                        target = await bringing.run(target)
                    images = await naming.store(self.stores.images, leased, naming.names_of_root(end, target))
                except BaseException:
                    await asyncio.shield(self._keep(bringing))
                    raise
                await self.stores.let_go(leased, source.reference)
        finally:
            await repository.close()
        for image in images:
            report(Progress("saved", image.name, descriptor=image.target))
        report(Progress(f"Completed pull from {shown}"))
        return images

    async def _keep(self, bringing: _Pull) -> None:
        try:
            await bringing.keep()
        except OrlopError as error:  # a disk that is full, mostly: what made the pull fail is told, not this
            _log.warning("what a failed pull of %s has brought is not kept: %s", bringing.origin.reference, error)

    async def _resolve(self, repository: Repository, reference: str) -> Descriptor:
        try:
            target = await repository.resolve()
        except OrlopError as error:
            raise error.within("failed to resolve image") from error
        if target.media_type in media.SCHEMA_1 or target.media_type == "text/plain":
            raise InvalidArgument(f"{reference}: schema 1 image manifests are no longer supported")
        if not (media.is_manifest(target.media_type) or media.is_index(target.media_type)):
            raise InvalidArgument(f"{reference}: {target.media_type!r} is neither a manifest nor an index")
        for name, verifier in self.verifiers.items():
            try:
                judgement = await verifier.verify(reference, target)
            except OrlopError as error:
                raise error.within(
                    f"blocking pull of {reference} with digest {target.digest}: image verifier {name} returned error"
                ) from error
            if not judgement.ok:
                raise Unknown(
                    f"image verifier {name} blocked pull of {reference} with digest {target.digest} "
                    f"for reason: {judgement.reason}"
                )
        return target


@dataclass(slots=True)
class _Pull:
    """One pull on its way: what it has met and what it has brought."""

    puller: Puller
    origin: Origin
    end: StoreEnd
    unpacks: Unpacks
    tracker: Tracker
    documents: set[str] = field(default_factory=set)
    brought: set[str] = field(default_factory=set)
    chains: list[tuple[str, unpack.Chain]] = field(default_factory=list)
    images: int = 0
    others: dict[str, None] = field(default_factory=dict)
    """Platforms that the index has and that are not wanted."""
    legacy: set[str] = field(default_factory=set)
    """Manifests that do not say what their config is."""

    async def run(self, target: Descriptor) -> Descriptor:
        """Returns what the image is to point at. Raises NotFound, naming what there is, if nothing in `target` is for
        the platforms that are wanted."""
        self.tracker.add(target)
        async with group_of_tasks() as group:
            await self._document(group, target, 0, with_layers=True)
        if not self.images:
            wanted = " or ".join(map(str, self.end.platforms)) or "any platform"
            has = f" (has {', '.join(self.others)})" if self.others else ""
            raise NotFound(f"{self.origin.reference}: no manifest for {wanted}{has}")
        if target.digest in self.legacy:
            return await legacy_manifest.rewrite(self.puller.stores.content, self.origin.scope, target)
        return target

    async def keep(self) -> None:
        scope = self.origin.scope
        kept = [Resource("content", digest) for digest in self.brought]
        for snapshotter, chain in self.chains:
            kept += [Resource(f"snapshots/{snapshotter}", id) for id in chain.ids]
        if kept:
            await self.puller.stores.keep(scope, str(self.origin.reference), kept)

    async def _document(self, group: asyncio.TaskGroup, target: Descriptor, depth: int, *, with_layers: bool) -> None:
        """Fetches a manifest or index and goes on with what it names."""
        self.documents.add(target.digest)
        if len(self.documents) > MAX_DOCUMENTS:
            raise InvalidArgument(f"{self.origin.reference}: more than {MAX_DOCUMENTS} manifests and indexes")
        if depth > select.MAX_DEPTH:
            raise InvalidArgument(f"index {target.digest}: indexes nested more than {select.MAX_DEPTH} deep")
        if target.size > documents.LIMIT:
            raise InvalidArgument(
                f"{self.origin.reference}: {target.digest} has {target.size} bytes, "
                f"at most {documents.LIMIT} of a document are read"
            )
        await self._fetch(target)
        content, scope = self.puller.stores.content, self.origin.scope
        if media.is_manifest(target.media_type):
            manifest = await documents.read_manifest(content, scope, target)
            config, layers = manifest.config.noun(), [layer.noun() for layer in manifest.layers]
            if legacy_manifest.is_legacy(target, config):
                config = replace(config, media_type=media.DOCKER_CONFIG)
                self.legacy.add(target.digest)
            await self._label(target, [config, *layers])
            group.create_task(self._image(target, config, layers, with_layers=with_layers))
            self.images += with_layers
            return
        index = await documents.read_index(content, scope, target)
        await self._label(target, [entry.noun() for entry in index.manifests])
        for entry, is_wanted in select.choose(index.manifests, self.end.platforms, self.end.manifest_limit):
            child = entry.noun()
            if entry.platform is not None and not is_wanted:
                self.others[str(entry.platform.noun())] = None
            if child.digest in self.documents or not (is_wanted or self.end.all_metadata):
                continue
            self.tracker.add(child, [target])
            if media.is_manifest(child.media_type) or media.is_index(child.media_type):
                wanted = with_layers and is_wanted
                group.create_task(self._document(group, child, depth + 1, with_layers=wanted))
                self.documents.add(child.digest)
            elif child.media_type in media.SCHEMA_1:
                raise InvalidArgument(f"{child.digest}: schema 1 image manifests are no longer supported")
            else:
                group.create_task(self._fetch(child))

    async def _image(
        self, manifest: Descriptor, config: Descriptor, layers: list[Descriptor], *, with_layers: bool
    ) -> None:
        """Fetches the config, then the layers, unpacking them where that is asked for."""
        self.tracker.add(config, [manifest])
        if with_layers:
            for layer in layers:
                self.tracker.add(layer, [manifest])
        await self._fetch(config)
        if not with_layers:
            return
        chain, target = await self._chain(config, layers)
        unpacked: set[str] = set()
        if target is not None and chain is not None:
            if target.remote:
                chain = replace(chain, layers=_announced(chain.layers, str(self.origin.reference), manifest.digest))
            self.chains.append((target.snapshotter, chain))
            unpacked = {layer.digest for layer in chain.layers}
            await self._unpack(chain, target)
        async with group_of_tasks() as group:
            for layer in {layer.digest: layer for layer in layers if layer.digest not in unpacked}.values():
                group.create_task(self._fetch_layer(layer, Arrival()))

    async def _chain(
        self, config: Descriptor, layers: list[Descriptor]
    ) -> tuple[unpack.Chain | None, UnpackTarget | None]:
        """The layers that are unpacked, and by what; nothing for what is no image of a platform that was asked for."""
        own = [layer for layer in layers if self.unpacks.is_layer(layer.media_type)]
        if not self.unpacks.matched or not own or config.size > documents.LIMIT:
            return None, None
        if not any(target.takes_config(config.media_type) for _, target in self.unpacks.matched):
            return None, None
        document = await documents.read_config(self.puller.stores.content, self.origin.scope, config)
        if document.rootfs.type not in ("", "layers"):
            return None, None
        target = self.unpacks.target(config.media_type, document.platform)
        if target is None:
            return None, None
        return unpack.Chain.of(config, own, document.rootfs.diff_ids), target

    async def _unpack(self, chain: unpack.Chain, target: UnpackTarget) -> None:
        """Unpacks a chain, one pull at a time: those that wait find it done."""
        stores, scope = self.puller.stores, self.origin.scope
        layers = _Layers(self, chain, target)
        async with self.puller.locks.hold((scope.namespace, target.snapshotter, chain.ids[-1])):
            async with group_of_tasks() as group:
                layers.group = group
                await unpack.unpack_chain(
                    stores.content,
                    stores.snapshots,
                    scope,
                    chain,
                    target.snapshotter,
                    layers.apply,
                    target.at_once,
                    marks=MARKS,
                    present=layers.present,
                )

    async def _note_present(self, layer: Descriptor) -> None:
        """A layer whose snapshot is there is not fetched: its blob, if it is here, is this pull's too."""
        if layer.digest in self.brought:
            return
        self.tracker.finish(layer, progress.EXISTS)
        try:
            await self.puller.fetches.label(self.origin, layer.digest)
        except NotFound:
            return
        await self.puller.fetches.keep(self.origin.scope, layer.digest)

    async def _fetch(self, descriptor: Descriptor) -> None:
        await self._brought(descriptor, Arrival(), is_layer=False)

    async def _fetch_layer(self, descriptor: Descriptor, arrival: Arrival) -> None:
        await self._brought(descriptor, arrival, is_layer=True)

    async def _brought(self, descriptor: Descriptor, arrival: Arrival, *, is_layer: bool) -> None:
        fetches = self.puller.fetches
        other = fetches.arriving(descriptor.digest)
        self.tracker.move(descriptor, lambda: (other or arrival).offset if not arrival.offset else arrival.offset)
        fetch = fetches.layer if is_layer else fetches.blob
        came = await fetch(self.origin, descriptor, arrival)
        self.brought.add(descriptor.digest)
        self.tracker.finish(descriptor, progress.COMPLETE if came or other else progress.EXISTS)

    async def _label(self, target: Descriptor, below: list[Descriptor]) -> None:
        """Keeps all that a document names from being collected, once it comes."""
        labels = children.labels_for(below)
        if labels:
            update = ContentInfo(target.digest, 0, labels=labels)
            fields = [f"labels.{key}" for key in labels]
            await self.puller.stores.content.update(self.origin.scope, update, fields)


class _Layers:
    """The layers of a chain on their way: fetched from the first one that is missing, applied while they arrive."""

    def __init__(self, pull: _Pull, chain: unpack.Chain, target: UnpackTarget) -> None:
        self.group: asyncio.TaskGroup | None = None
        self._pull = pull
        self._chain = chain
        self._differ = target.differ
        self._is_remote = target.remote
        self._first = 0
        """Below this number all are there."""
        self._coming: dict[str, tuple[Arrival, asyncio.Task[None]]] = {}

    async def apply(self, number: int, mounts: Sequence[Mount]) -> Descriptor:
        layer = self._chain.layers[number]
        self._begin(number)
        arrival, fetching = self._coming[layer.digest]
        try:
            applied = await self._follow(layer, arrival, mounts)
        except OrlopError:
            await fetching  # a blob that is not what it should be is the cause that is told
            raise
        await fetching
        if applied is None:
            self._pull.tracker.extract(layer)
            applied = await self._differ.apply(self._pull.origin.scope, layer, mounts)
        elif isinstance(self._differ, StreamDiffer):
            await self._differ.verified(layer, applied)  # as the blob was, by its commit
        self._pull.tracker.finish(layer, progress.EXTRACTED)
        return applied

    async def present(self, number: int) -> None:
        if number == self._first:
            self._first += 1
        await self._pull._note_present(self._chain.layers[number])

    def _begin(self, number: int) -> None:
        """Fetches the layers from the lowest, which others wait for; a snapshotter that fetches for itself may yet
        turn out to have those below `number`."""
        assert self.group is not None
        for layer in self._chain.layers[number if self._is_remote else self._first :]:
            if layer.digest not in self._coming:
                arrival = Arrival()
                task = self.group.create_task(self._pull._fetch_layer(layer, arrival))
                self._coming[layer.digest] = (arrival, task)

    async def _follow(self, layer: Descriptor, arrival: Arrival, mounts: Sequence[Mount]) -> Descriptor | None:
        """Applies a layer while it arrives; None where that cannot be."""
        if not isinstance(self._differ, StreamDiffer) or not await arrival.opened:
            return None
        follower = arrival.follow()
        if follower is None:
            return None
        applying = asyncio.ensure_future(self._differ.apply_stream(layer, follower, mounts))
        try:
            return await asyncio.shield(applying)
        except asyncio.CancelledError:
            # The differ's thread may wait for bytes, whose fetch ends only after this.
            follower.abandon()
            applying.cancel()
            await asyncio.gather(applying, return_exceptions=True)
            raise
        except NeedsLower:
            raise
        except Unimplemented:
            return None
        finally:
            follower.close()


def _announced(layers: Sequence[Descriptor], reference: str, manifest: str) -> list[Descriptor]:
    """The layers, with the annotations that tell a snapshotter where to fetch them itself."""
    return [
        replace(
            layer,
            annotations={
                **layer.annotations,
                f"{_REMOTE}image-ref": reference,
                f"{_REMOTE}manifest-digest": manifest,
                f"{_REMOTE}layer-digest": layer.digest,
                f"{_REMOTE}image-layers": _joined(one.digest for one in layers[number:]),
            },
        )
        for number, layer in enumerate(layers)
    ]


def _joined(digests: Iterable[str]) -> str:
    """As many digests as a label has room for."""
    room = MAX_SIZE - len(f"{_REMOTE}image-layers")
    joined = ""
    for digest in digests:
        longer = f"{joined},{digest}" if joined else digest
        if len(longer) > room:
            break
        joined = longer
    return joined
