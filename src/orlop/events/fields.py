"""How an event answers a filter: `namespace`, `topic`, and `event.<field>` of payloads whose type is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from orlop.core.event import Envelope
from orlop.core.typed import Typed

_ABSENT = ("", False)
_SHOWN = {
    FieldDescriptor.CPPTYPE_STRING,
    FieldDescriptor.CPPTYPE_BOOL,
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
}


def adaptor(envelope: Envelope) -> Callable[[Sequence[str]], tuple[str, bool]]:
    """Answers field paths for `envelope`; the payload is decoded once, when a filter first asks for it."""
    decoded: list[Message | None] = []

    def answer(path: Sequence[str]) -> tuple[str, bool]:
        if not path:
            return _ABSENT
        match path[0]:
            case "namespace":
                return envelope.namespace, bool(envelope.namespace)
            case "topic":
                return envelope.topic, bool(envelope.topic)
            case "event":
                if not decoded:
                    decoded.append(decode(envelope.event))
                return _ABSENT if decoded[0] is None else _field(decoded[0], path[1:])
        return _ABSENT

    return answer


def decode(payload: Typed) -> Message | None:
    """`payload` as a message, None if its type is not known here or its bytes are not of that type."""
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(payload.type_name)
        message: Message = GetMessageClass(descriptor)()
        message.ParseFromString(payload.value)
    except (KeyError, DecodeError):
        return None
    return message


def _field(message: Message, path: Sequence[str]) -> tuple[str, bool]:
    if not path:
        return _ABSENT
    field = message.DESCRIPTOR.fields_by_name.get(path[0])
    if field is None:
        return _ABSENT
    value: Any = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key = ".".join(path[1:])
        return (str(value[key]), True) if key in value else _ABSENT
    if field.is_repeated:
        return _ABSENT
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return _field(value, path[1:]) if message.HasField(field.name) else _ABSENT
    if field.cpp_type not in _SHOWN or len(path) > 1:
        return _ABSENT
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text, bool(value)
