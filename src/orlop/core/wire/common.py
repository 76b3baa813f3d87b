"""Parts that many messages share: time stamps, typed values, descriptors, mounts, platforms, field masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from orlop.api.types import descriptor_pb2, mount_pb2, platform_pb2
from orlop.core import clock
from orlop.core.descriptor import Descriptor
from orlop.core.mount import Mount
from orlop.core.platform import Platform
from orlop.core.typed import Typed
from orlop.errors import InvalidArgument

M = TypeVar("M", bound=Message)


def timestamp(nanoseconds: int) -> Timestamp:
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)


_EARLIEST, _LATEST = clock.ZERO, 253_402_300_800 * 1_000_000_000 - 1
"""The first and the last nanosecond of the years 1 to 9999: what a Timestamp may say (timestamp.proto)."""


def nanoseconds(stamp: Timestamp) -> int:
    """A stamp that says what it may not, which only a faulty peer sends, counts as the nearest it may."""
    return min(max(stamp.seconds * 1_000_000_000 + stamp.nanos, _EARLIEST), _LATEST)


def any_of(typed: Typed | None) -> Any | None:
    return None if typed is None else Any(type_url=typed.type_url, value=typed.value)


def typed_of(value: Any) -> Typed:
    return Typed(value.type_url, value.value)


def pack(message: Message) -> Typed:
    """`message` with its bare name as type URL: Go clients refuse the prefix that `Any.Pack` writes."""
    return Typed(message.DESCRIPTOR.full_name, message.SerializeToString())


def parsed(typed: Typed, into: M) -> M:
    """What `typed` holds, which is a message of the type of `into`. Raises InvalidArgument where it is not."""
    name = into.DESCRIPTOR.full_name
    if typed.type_name != name:
        raise InvalidArgument(f"expected {name}, not {typed.type_name!r}")
    try:
        into.ParseFromString(typed.value)
    except DecodeError as error:
        raise InvalidArgument(f"{name}: {error}") from None
    return into


def optional_typed(message: Message, field: str) -> Typed | None:
    """The `Any` in `field` of `message`, None if it is not set."""
    return typed_of(getattr(message, field)) if message.HasField(field) else None


def anys_of(values: Mapping[str, Typed]) -> dict[str, Any]:
    return {key: Any(type_url=value.type_url, value=value.value) for key, value in values.items()}


def descriptor(noun: Descriptor) -> descriptor_pb2.Descriptor:
    return descriptor_pb2.Descriptor(
        media_type=noun.media_type, digest=noun.digest, size=noun.size, annotations=dict(noun.annotations)
    )


def descriptor_of(message: descriptor_pb2.Descriptor) -> Descriptor:
    return Descriptor(message.media_type, message.digest, message.size, dict(message.annotations))


def mount(noun: Mount) -> mount_pb2.Mount:
    return mount_pb2.Mount(type=noun.type, source=noun.source, target=noun.target, options=noun.options)


def mount_of(message: mount_pb2.Mount) -> Mount:
    return Mount(message.type, message.source, tuple(message.options), message.target)


def mounts(nouns: Iterable[Mount]) -> list[mount_pb2.Mount]:
    return [mount(noun) for noun in nouns]


def mounts_of(messages: Iterable[mount_pb2.Mount]) -> list[Mount]:
    return [mount_of(message) for message in messages]


def platform(noun: Platform) -> platform_pb2.Platform:
    return platform_pb2.Platform(
        os=noun.os,
        architecture=noun.architecture,
        variant=noun.variant,
        os_version=noun.os_version,
        os_features=noun.os_features,
    )


def platform_of(message: platform_pb2.Platform) -> Platform:
    return Platform(message.os, message.architecture, message.variant, message.os_version, tuple(message.os_features))


def mask_of(message: Message, field: str = "update_mask") -> Sequence[str] | None:
    """The paths of a request's field mask; None where it has none, which stands for every mutable field."""
    if not message.HasField(field):
        return None
    mask: FieldMask = getattr(message, field)
    return list(mask.paths) or None
