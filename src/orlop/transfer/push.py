"""Push: from the image store to a registry, children before what names them, the tag last."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from orlop.core import media
from orlop.core.content import Reader
from orlop.core.descriptor import Descriptor
from orlop.core.group import group_of_tasks
from orlop.core.reference import Reference
from orlop.core.registry import Registries, Repository
from orlop.core.scope import Scope
from orlop.core.transfer import Progress, RegistryEnd, Report, StoreEnd
from orlop.errors import InvalidArgument, NotFound, Unknown
from orlop.images import children, documents, select
from orlop.transfer import progress
from orlop.transfer.fetch import SOURCE
from orlop.transfer.progress import Tracker
from orlop.transfer.stores import Stores

REFERRER = f"{children.PREFIX}referrer."
"""Labels of a manifest by which content is kept that refers to it; it is pushed along."""


@dataclass(frozen=True, slots=True)
class Pusher:
    """Pushes; `uploads` bounds how many layers go out at a time, over all of them."""

    stores: Stores
    registries: Registries
    uploads: asyncio.Semaphore

    async def push(self, scope: Scope, source: StoreEnd, destination: RegistryEnd, report: Report) -> None:
        image = await self.stores.images.get(scope, source.name)
        shown = f"OCI Registry ({destination.reference})"
        repository = self.registries.repository(destination.reference, destination.options)
        try:
            target = await self._target(scope, image.target, source)
            report(Progress(f"Pushing to {shown}"))
            report(Progress("pushing content", image.name, descriptor=target))
            tracker = Tracker(report, image.name, "uploading")
            going = _Push(self, scope, repository, Reference.parse(destination.reference), source, tracker)
            async with tracker.running():
                await going.run(target)
        finally:
            await repository.close()
        report(Progress("pushed content", image.name, descriptor=target))
        report(Progress(f"Completed push to {shown}", descriptor=target))

    async def _target(self, scope: Scope, target: Descriptor, source: StoreEnd) -> Descriptor:
        """What gets the tag. A single manifest of an index is pushed by itself: registries refuse an index that names
        manifests which they do not have."""
        if not source.platforms or not media.is_index(target.media_type):
            return target
        index = await documents.read_index(self.stores.content, scope, target)
        wanted = [entry.noun() for entry, fits in select.choose(index.manifests, source.platforms) if fits]
        if not wanted:
            has = ", ".join(str(entry.platform.noun()) for entry in index.manifests if entry.platform is not None)
            raise NotFound(
                f'image "{source.name}": no manifest for {" or ".join(map(str, source.platforms))} (has {has})'
            )
        return wanted[0] if len(wanted) == 1 and len(index.manifests) > 1 else target


@dataclass(slots=True)
class _Push:
    """One push on its way."""

    pusher: Pusher
    scope: Scope
    repository: Repository
    reference: Reference
    source: StoreEnd
    tracker: Tracker
    going: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """By digest, so that nothing goes out twice however often it is named."""
    platforms: dict[str, str] = field(default_factory=dict)
    """What each manifest is for, by digest, as far as indexes say."""
    left: dict[str, None] = field(default_factory=dict)
    """Platforms of indexes that are not pushed."""

    async def run(self, target: Descriptor) -> None:
        self.tracker.add(target)
        await self._document(target, 0, (), is_root=True)

    async def _document(self, target: Descriptor, depth: int, above: Sequence[str], *, is_root: bool = False) -> None:
        if depth > select.MAX_DEPTH or target.digest in above:
            raise InvalidArgument(f"index {target.digest}: indexes nested more than {select.MAX_DEPTH} deep")
        async with group_of_tasks() as group:
            for child in await self._children(target):
                if media.is_non_distributable(child.media_type):
                    continue
                self.tracker.add(child, [target])
                task = self.going.get(child.digest)
                if task is None:
                    task = group.create_task(self._child(child, depth + 1, (*above, target.digest)))
                    self.going[child.digest] = task
                else:
                    group.create_task(_finished(task))
        if is_root:
            self.tracker.move(target, lambda: 0)
            await self._tag(target)
            self.tracker.finish(target, progress.COMPLETE)
        else:
            await self._upload(target)

    async def _tag(self, target: Descriptor) -> None:
        try:
            await self.repository.tag(target, lambda: self._open(target))
        except (Unknown, NotFound) as error:
            if not self.left:
                raise
            raise error.within(
                f"the index without {', '.join(self.left)}, which most registries refuse (push all platforms, or one)"
            ) from error

    async def _child(self, child: Descriptor, depth: int, above: Sequence[str]) -> None:
        if media.is_manifest(child.media_type) or media.is_index(child.media_type):
            await self._document(child, depth, above)
            return
        async with self.pusher.uploads:
            await self._upload(child)

    async def _upload(self, descriptor: Descriptor) -> None:
        sent = 0

        def note(size: int) -> None:
            nonlocal sent
            sent = size

        self.tracker.move(descriptor, lambda: sent)
        went = await self.repository.push(
            descriptor,
            lambda: self._open(descriptor),
            mount_from=await self._elsewhere(descriptor),
            progress=note,
        )
        self.tracker.finish(descriptor, progress.COMPLETE if went else progress.EXISTS)

    async def _children(self, target: Descriptor) -> list[Descriptor]:
        content = self.pusher.stores.content
        try:
            if media.is_manifest(target.media_type):
                manifest = await documents.read_manifest(content, self.scope, target)
                below = [layer.noun() for layer in manifest.layers] + [manifest.config.noun()]
            elif media.is_index(target.media_type):
                below = self._chosen(await documents.read_index(content, self.scope, target))
            else:
                raise InvalidArgument(f"{target.digest}: {target.media_type!r} is neither a manifest nor an index")
        except NotFound as error:
            raise self._absent(target, error) from error
        return below + await self._referrers(target)

    def _chosen(self, index: documents.Index) -> list[Descriptor]:
        below = []
        for entry, fits in select.choose(index.manifests, self.source.platforms):
            if entry.platform is not None:
                self.platforms[entry.digest] = str(entry.platform.noun())
            if fits:
                below.append(entry.noun())
            else:
                self.left[self.platforms.get(entry.digest, entry.digest)] = None
        return below

    def _absent(self, target: Descriptor, error: NotFound) -> NotFound:
        platform = self.platforms.get(target.digest)
        what = f"what it has for {platform}" if platform else target.media_type
        hint = " (name the platforms to push)" if platform else ""
        return NotFound.verbatim(f'image "{self.source.name}": {what} is not here{hint}: {error}')

    async def _referrers(self, target: Descriptor) -> list[Descriptor]:
        content = self.pusher.stores.content
        labels = (await content.info(self.scope, target.digest)).labels
        found = []
        for digest in sorted({value for key, value in labels.items() if key.startswith(REFERRER)}):
            try:
                size = (await content.info(self.scope, digest)).size
            except NotFound:
                continue
            found.append(Descriptor(media.OCI_MANIFEST, digest, size))
        return found

    async def _open(self, descriptor: Descriptor) -> Reader:
        try:
            return await self.pusher.stores.content.open_reader(self.scope, descriptor.digest)
        except NotFound as error:
            raise self._absent(descriptor, error) from error

    async def _elsewhere(self, descriptor: Descriptor) -> list[str]:
        """Other repositories of the same registry that the blob came from."""
        try:
            labels = (await self.pusher.stores.content.info(self.scope, descriptor.digest)).labels
        except NotFound:
            return []
        known = labels.get(f"{SOURCE}{self.reference.host_name}", "").split(",")
        return sorted({path for path in known if path and path != self.reference.path})


async def _finished(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])
    task.result()
