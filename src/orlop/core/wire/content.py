"""Content: infos and ingest statuses, to the wire and back."""

from __future__ import annotations

from orlop.api.services.content.v1 import content_pb2
from orlop.core.content import ContentInfo, IngestStatus
from orlop.core.wire.common import nanoseconds, timestamp


def info(noun: ContentInfo) -> content_pb2.Info:
    return content_pb2.Info(
        digest=noun.digest,
        size=noun.size,
        created_at=timestamp(noun.created_at),
        updated_at=timestamp(noun.updated_at),
        labels=noun.labels,
    )


def info_of(message: content_pb2.Info) -> ContentInfo:
    return ContentInfo(
        digest=message.digest,
        size=message.size,
        created_at=nanoseconds(message.created_at),
        updated_at=nanoseconds(message.updated_at),
        labels=dict(message.labels),
    )


def status(noun: IngestStatus) -> content_pb2.Status:
    return content_pb2.Status(
        started_at=timestamp(noun.started_at),
        updated_at=timestamp(noun.updated_at),
        ref=noun.ref,
        offset=noun.offset,
        total=noun.total,
        expected=noun.expected,
    )


def status_of(message: content_pb2.Status) -> IngestStatus:
    return IngestStatus(
        ref=message.ref,
        offset=message.offset,
        total=message.total,
        expected=message.expected,
        started_at=nanoseconds(message.started_at),
        updated_at=nanoseconds(message.updated_at),
    )
