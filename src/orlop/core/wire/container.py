"""Container records on the wire."""

from __future__ import annotations

from orlop.api.services.containers.v1 import containers_pb2 as pb
from orlop.core.container import Container, Runtime
from orlop.core.wire import common


def container(noun: Container) -> pb.Container:
    return pb.Container(
        id=noun.id,
        labels=dict(noun.labels),
        image=noun.image,
        runtime=pb.Container.Runtime(name=noun.runtime.name, options=common.any_of(noun.runtime.options)),
        spec=common.any_of(noun.spec),
        snapshotter=noun.snapshotter,
        snapshot_key=noun.snapshot_key,
        created_at=common.timestamp(noun.created_at),
        updated_at=common.timestamp(noun.updated_at),
        extensions=common.anys_of(noun.extensions),
        sandbox=noun.sandbox,
    )


def container_of(message: pb.Container) -> Container:
    """A runtime that is not set has no name; whether that is allowed is the store's to say."""
    return Container(
        id=message.id,
        runtime=Runtime(message.runtime.name, common.optional_typed(message.runtime, "options")),
        labels=dict(message.labels),
        image=message.image,
        spec=common.optional_typed(message, "spec"),
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        sandbox=message.sandbox,
        extensions={key: common.typed_of(value) for key, value in message.extensions.items()},
        created_at=common.nanoseconds(message.created_at),
        updated_at=common.nanoseconds(message.updated_at),
    )
