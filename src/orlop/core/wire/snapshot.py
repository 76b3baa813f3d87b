"""Snapshots as messages."""

from __future__ import annotations

from orlop.api.services.snapshots.v1 import snapshots_pb2
from orlop.core.snapshot import Kind, SnapshotInfo, Usage
from orlop.core.wire import common


def info(noun: SnapshotInfo) -> snapshots_pb2.Info:
    return snapshots_pb2.Info(
        name=noun.name,
        parent=noun.parent,
        kind=noun.kind.name,
        created_at=common.timestamp(noun.created_at),
        updated_at=common.timestamp(noun.updated_at),
        labels=dict(noun.labels),
    )


def info_of(message: snapshots_pb2.Info) -> SnapshotInfo:
    return SnapshotInfo(
        name=message.name,
        # A kind of a newer peer is one we do not know.
        kind=Kind(message.kind) if message.kind in Kind._value2member_map_ else Kind.UNKNOWN,
        parent=message.parent,
        labels=dict(message.labels),
        created_at=common.nanoseconds(message.created_at),
        updated_at=common.nanoseconds(message.updated_at),
    )


def usage(noun: Usage) -> snapshots_pb2.UsageResponse:
    return snapshots_pb2.UsageResponse(size=noun.size, inodes=noun.inodes)


def usage_of(message: snapshots_pb2.UsageResponse) -> Usage:
    return Usage(message.size, message.inodes)
