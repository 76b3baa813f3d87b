"""The store of images: names for descriptors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import apsw

from orlop.api.events import image_pb2 as events
from orlop.core import clock, digest, fieldpath, filters, labels
from orlop.core.descriptor import Descriptor
from orlop.core.event import Publisher
from orlop.core.image import Image
from orlop.core.labels import stored
from orlop.core.scope import Scope
from orlop.errors import AlreadyExists, InvalidArgument, NotFound
from orlop.metadata import leases, records
from orlop.metadata.database import Database
from orlop.metadata.kept_rows import KeptRows, row_query

EXPIRE_LABEL = "containerd.io/gc.expire"
"""An image that has it can be collected, and so joins the lease it is made under."""

_COLUMNS = "name, labels, media_type, digest, size, annotations, created_at, updated_at"


async def _nothing() -> None:
    return


class ImageStore:
    """Images by namespace. `collect` is what a synchronous deletion waits for; the collector sets it."""

    def __init__(self, db: Database, publisher: Publisher) -> None:
        self._db = db
        self._publisher = publisher
        self.collect: Callable[[], Awaitable[None]] = _nothing
        self._kept = KeptRows(db, "images", row_query("images", _COLUMNS, "namespace", "name"), _load)

    async def get(self, scope: Scope, name: str) -> Image:
        image = self._kept.find(scope.namespace, name)
        if image is None:
            raise _missing(name)
        return image

    async def list(self, scope: Scope, filters: Sequence[str] = ()) -> list[Image]:
        """The images that match, by name."""
        matches = records.parse_filters(filters)

        def query(connection: apsw.Connection) -> list[Image]:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM images WHERE namespace = ? ORDER BY name",
                (scope.namespace,),
            )
            return [image for image in records.each_readable(rows, _load, "image") if matches(_adaptor(image))]

        return await asyncio.to_thread(self._db.read, query)

    async def create(self, scope: Scope, image: Image, *, epoch: int | None = None) -> Image:
        """`epoch` (nanoseconds) replaces the time of the call in both time stamps. The blob need not exist.

        Raises InvalidArgument, AlreadyExists, and NotFound if it shall join a lease that does not exist.
        """
        _validate(image)
        now = clock.now() if epoch is None else epoch
        made = _as_stored(replace(image, created_at=now, updated_at=now))

        def change(connection: apsw.Connection) -> None:
            records.ensure_namespace(connection, scope.namespace)
            _join_lease(connection, scope, made)
            if _find(connection, scope.namespace, made.name) is not None:
                raise AlreadyExists(f'image "{made.name}"')
            connection.execute(
                f"INSERT INTO images (namespace, {_COLUMNS}) VALUES (?{', ?' * 8})",
                (scope.namespace, *_dump(made)),
            )

        await self._db.write(change)
        self._publisher.publish(
            scope.namespace, "/images/create", events.ImageCreate(name=made.name, labels=dict(made.labels))
        )
        return made

    async def update(
        self, scope: Scope, image: Image, fields: Sequence[str] | None, *, epoch: int | None = None
    ) -> Image:
        """Replaces what `fields` (mask paths) name; None stands for all but the time of creation."""
        if not image.name:
            raise InvalidArgument.verbatim("Image.Name required")

        def change(connection: apsw.Connection) -> Image:
            old = _require(connection, scope.namespace, image.name)
            new = old
            for path in ("labels", "target") if fields is None else fields:
                new = _masked(new, image, path)
            _validate(new)
            new = _as_stored(replace(new, updated_at=clock.now() if epoch is None else epoch))
            _join_lease(connection, scope, new)
            connection.execute(
                "UPDATE images SET labels = ?, media_type = ?, digest = ?, size = ?, annotations = ?, "
                "created_at = ?, updated_at = ? WHERE namespace = ? AND name = ?",
                (*_dump(new)[1:], scope.namespace, new.name),
            )
            return new

        updated = await self._db.write(change)
        self._publisher.publish(
            scope.namespace, "/images/update", events.ImageUpdate(name=updated.name, labels=dict(updated.labels))
        )
        return updated

    async def delete(self, scope: Scope, name: str, *, target: Descriptor | None = None, sync: bool = False) -> None:
        """`target`: delete only if the name still points there. `sync`: return after a garbage collection."""

        def change(connection: apsw.Connection) -> None:
            image = _require(connection, scope.namespace, name)
            if target is not None and target.digest and image.target.digest != target.digest:
                raise NotFound(f'image "{name}" has target {image.target.digest}, not {target.digest}')
            leases.leave(connection, scope, "images", name)
            connection.execute("DELETE FROM images WHERE namespace = ? AND name = ?", (scope.namespace, name))

        await self._db.write(change, removes=1, frees=True)
        self._publisher.publish(scope.namespace, "/images/delete", events.ImageDelete(name=name))
        if sync:
            await self.collect()


def _find(connection: apsw.Connection, namespace: str, name: str) -> Image | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM images WHERE namespace = ? AND name = ?",
        (namespace, name),
    ).fetchone()
    return None if row is None else _load(row)


def _require(connection: apsw.Connection, namespace: str, name: str) -> Image:
    image = _find(connection, namespace, name)
    if image is None:
        raise _missing(name)
    return image


def _missing(name: str) -> NotFound:
    return NotFound(f'image "{name}"')


def _load(row: tuple[Any, ...]) -> Image:
    name, label_text, media_type, digest_text, size, annotations, created_at, updated_at = row
    target = Descriptor(media_type, digest_text, size, records.load_labels(annotations))
    return Image(name, target, records.load_labels(label_text), created_at, updated_at)


def _dump(image: Image) -> tuple[Any, ...]:
    return (
        image.name,
        records.dump_labels(image.labels),
        image.target.media_type,
        image.target.digest,
        image.target.size,
        records.dump_labels(image.target.annotations),
        image.created_at,
        image.updated_at,
    )


def _as_stored(image: Image) -> Image:
    target = replace(image.target, annotations=stored(image.target.annotations))
    return replace(image, labels=stored(image.labels), target=target)


def _join_lease(connection: apsw.Connection, scope: Scope, image: Image) -> None:
    if EXPIRE_LABEL in image.labels:
        leases.join(connection, scope, "images", image.name)


def _masked(old: Image, new: Image, path: str) -> Image:
    changed_labels = fieldpath.masked(path, "labels", old.labels, new.labels, "")
    if changed_labels is not None:
        return replace(old, labels=changed_labels)
    annotations = fieldpath.masked(path, "annotations", old.target.annotations, new.target.annotations, "")
    if annotations is not None:
        return replace(old, target=replace(old.target, annotations=annotations))
    if path == "target":
        return replace(old, target=new.target)
    raise InvalidArgument(f'cannot update "{path}" field on image "{old.name}"')


def _validate(image: Image) -> None:
    if not image.name:
        raise InvalidArgument.verbatim("Image.Name required")
    labels.validate(image.labels, "image.Labels")
    why = digest.problem(image.target.digest)
    if why:
        raise InvalidArgument(f'target.Digest "{image.target.digest}" invalid: {why}')
    if image.target.size <= 0:
        raise InvalidArgument("target.Size must be greater than zero")
    if not image.target.media_type:
        raise InvalidArgument("target.MediaType must be set")


def _adaptor(image: Image) -> filters.Adaptor:
    def value(path: Sequence[str]) -> tuple[str, bool]:
        match path[0]:
            case "name":
                return image.name, bool(image.name)
            case "target" if path[1:2] == ("digest",):
                return image.target.digest, bool(image.target.digest)
            case "target" if path[1:2] == ("mediatype",):
                return image.target.media_type, bool(image.target.media_type)
            case "labels":
                return filters.labels_field(path[1:], image.labels)
            case "annotations":
                return filters.labels_field(path[1:], image.target.annotations)
        return "", False

    return value
