"""Running containers: from an image's name to a process, and back to nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orlop.client import remap
from orlop.client.client import Client
from orlop.core.container import Container, Runtime
from orlop.core.image import Image
from orlop.core.mount import Mount
from orlop.core.platform import host
from orlop.core.scope import Scope
from orlop.core.task import Status
from orlop.errors import AlreadyExists, FailedPrecondition, NotFound
from orlop.images import documents, select
from orlop.mounts.temporary import TemporaryMounts
from orlop.oci import spec, user
from orlop.oci.spec import ImageDefaults, SpecOptions

STOP_SIGNAL_LABEL = "io.containerd.image.config.stop-signal"

_RESERVED = ("containerd.io/", "io.cri-containerd", "io.orlop")
"""Prefixes of labels that mean something to us: an image's own labels must not carry them (CVE-2026-53488)."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller says of a container beside its spec; empty values leave it to image and namespace."""

    spec: SpecOptions = field(default_factory=SpecOptions)
    user: str = ""
    groups: Sequence[str] = ()
    """Further groups, by name or number."""
    labels: Mapping[str, str] = field(default_factory=dict)
    runtime: str = ""


async def create(client: Client, image: Image, id: str, options: Options) -> Container:
    """Makes the container `id` from `image`, unpacking it first where needed. Raises AlreadyExists for an id in use;
    nothing is left behind where it fails."""
    snapshotter = await client.snapshotter()
    async with client.lease() as scope:
        chain_id = await client.unpack(image, scope)
        _, manifest = await select.manifest_for(client.content, scope, image.target, host())
        config = await documents.read_config(client.content, scope, manifest.config.noun())
        process = config.config or documents.Process()
        try:
            mounts = await remap.prepare(client, scope, snapshotter, id, chain_id, options.spec.namespaces)
        except AlreadyExists:
            raise AlreadyExists(f'container "{id}"') from None
        try:
            defaults = ImageDefaults(
                entrypoint=process.entrypoint or (),
                command=process.cmd or (),
                environment=process.env or (),
                directory=process.working_dir,
            )
            runs_as = _user(mounts, options.user or process.user, options.groups)
            document = spec.build(scope.namespace, id, defaults, runs_as, options.spec)
            return await client.containers.create(
                scope,
                Container(
                    id=id,
                    runtime=Runtime(options.runtime or await client.runtime()),
                    labels=_labels(process, options.labels),
                    image=image.name,
                    spec=spec.typed(document),
                    snapshotter=snapshotter,
                    snapshot_key=id,
                ),
            )
        except BaseException:
            await client.snapshots.remove(scope, snapshotter, id)
            raise


async def rootfs(client: Client, container: Container) -> list[Mount]:
    """The mounts of a container's root file system."""
    if not container.snapshot_key:
        return []
    return await client.snapshots.mounts(client.scope, container.snapshotter, container.snapshot_key)


async def remove(client: Client, id: str, *, force: bool = False) -> None:
    """Removes a container, its task and its snapshot. Raises FailedPrecondition if it runs and is not forced."""
    scope = client.scope
    container = await client.containers.get(scope, id)
    try:
        task = await client.tasks.get(scope, id)
    except NotFound:
        pass
    else:
        if task.status not in (Status.STOPPED, Status.CREATED):
            if not force:
                raise FailedPrecondition.verbatim(f'container "{id}" is {task.status.name.lower()}: kill it, or force')
            await _end(client, scope, id, paused=task.status == Status.PAUSED)
        await client.tasks.delete(scope, id)
    if container.snapshot_key:
        try:
            await client.snapshots.remove(scope, container.snapshotter, container.snapshot_key)
        except NotFound:
            pass
    await client.containers.delete(scope, id)


async def _end(client: Client, scope: Scope, id: str, *, paused: bool) -> None:
    try:
        await client.tasks.kill(scope, id, signal=9, everyone=True)
        if paused:
            await client.tasks.resume(scope, id)
    except NotFound:
        return  # it has just ended by itself
    await client.tasks.wait(scope, id)


def _user(mounts: Sequence[Mount], text: str, groups: Sequence[str]) -> user.User:
    with tempfile.TemporaryDirectory(prefix="orlop-user-") as folder:
        temporary = TemporaryMounts(Path(folder))
        try:
            with temporary.mounted(mounts, readonly=True) as root:
                return user.with_groups(user.resolve(text, root), groups, root)
        finally:
            temporary.close()


def _labels(process: documents.Process, own: Mapping[str, str]) -> dict[str, str]:
    labels = {key: value for key, value in (process.labels or {}).items() if not key.startswith(_RESERVED)}
    if process.stop_signal:
        labels[STOP_SIGNAL_LABEL] = process.stop_signal
    return labels | dict(own)
