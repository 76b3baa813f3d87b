"""Sandbox records on the wire."""

from __future__ import annotations

from orlop.api.types import sandbox_pb2 as pb
from orlop.core.container import Runtime
from orlop.core.sandbox import Sandbox
from orlop.core.wire import common


def sandbox(noun: Sandbox) -> pb.Sandbox:
    return pb.Sandbox(
        sandbox_id=noun.id,
        runtime=pb.Sandbox.Runtime(name=noun.runtime.name, options=common.any_of(noun.runtime.options)),
        spec=common.any_of(noun.spec),
        labels=dict(noun.labels),
        created_at=common.timestamp(noun.created_at),
        updated_at=common.timestamp(noun.updated_at),
        extensions=common.anys_of(noun.extensions),
        sandboxer=noun.sandboxer,
    )


def sandbox_of(message: pb.Sandbox) -> Sandbox:
    return Sandbox(
        id=message.sandbox_id,
        runtime=Runtime(message.runtime.name, common.optional_typed(message.runtime, "options")),
        spec=common.optional_typed(message, "spec"),
        labels=dict(message.labels),
        extensions={key: common.typed_of(value) for key, value in message.extensions.items()},
        sandboxer=message.sandboxer,
        created_at=common.nanoseconds(message.created_at),
        updated_at=common.nanoseconds(message.updated_at),
    )
