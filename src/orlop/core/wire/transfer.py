"""Transfers on the wire."""

from __future__ import annotations

from collections.abc import Iterable

from orlop.api.types import platform_pb2
from orlop.api.types.transfer import imagestore_pb2, progress_pb2
from orlop.core.platform import Platform
from orlop.core.transfer import ImageReference, Progress, StoreEnd, UnpackRequest
from orlop.core.wire import common


def progress(noun: Progress) -> progress_pb2.Progress:
    return progress_pb2.Progress(
        event=noun.event,
        name=noun.name,
        parents=noun.parents,
        progress=noun.progress,
        total=noun.total,
        desc=common.descriptor(noun.descriptor) if noun.descriptor is not None else None,
    )


def progress_of(message: progress_pb2.Progress) -> Progress:
    return Progress(
        message.event,
        message.name,
        tuple(message.parents),
        message.progress,
        message.total,
        common.descriptor_of(message.desc) if message.HasField("desc") else None,
    )


def store(noun: StoreEnd) -> imagestore_pb2.ImageStore:
    return imagestore_pb2.ImageStore(
        name=noun.name,
        labels=dict(noun.labels),
        platforms=platforms(noun.platforms),
        all_metadata=noun.all_metadata,
        manifest_limit=noun.manifest_limit,
        extra_references=[_reference(reference) for reference in noun.extra_references],
        unpacks=[_unpack(request) for request in noun.unpacks],
    )


def store_of(message: imagestore_pb2.ImageStore) -> StoreEnd:
    return StoreEnd(
        name=message.name,
        labels=dict(message.labels),
        platforms=tuple(common.platform_of(platform) for platform in message.platforms),
        all_metadata=message.all_metadata,
        manifest_limit=message.manifest_limit,
        extra_references=tuple(_reference_of(reference) for reference in message.extra_references),
        unpacks=tuple(
            UnpackRequest(common.platform_of(request.platform), request.snapshotter) for request in message.unpacks
        ),
    )


def platforms(nouns: Iterable[Platform]) -> list[platform_pb2.Platform]:
    return [common.platform(noun) for noun in nouns]


def _unpack(noun: UnpackRequest) -> imagestore_pb2.UnpackConfiguration:
    return imagestore_pb2.UnpackConfiguration(platform=common.platform(noun.platform), snapshotter=noun.snapshotter)


def _reference(noun: ImageReference) -> imagestore_pb2.ImageReference:
    return imagestore_pb2.ImageReference(
        name=noun.name,
        is_prefix=noun.is_prefix,
        allow_overwrite=noun.allow_overwrite,
        add_digest=noun.add_digest,
        skip_named_digest=noun.skip_named_digest,
    )


def _reference_of(message: imagestore_pb2.ImageReference) -> ImageReference:
    return ImageReference(
        message.name, message.is_prefix, message.allow_overwrite, message.add_digest, message.skip_named_digest
    )
