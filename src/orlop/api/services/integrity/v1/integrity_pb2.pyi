from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CheckRequest(_message.Message):
    __slots__ = ("blobs", "layers", "discard")
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    blobs: _containers.RepeatedScalarFieldContainer[str]
    layers: _containers.RepeatedScalarFieldContainer[str]
    discard: bool
    def __init__(self, blobs: _Optional[_Iterable[str]] = ..., layers: _Optional[_Iterable[str]] = ..., discard: _Optional[bool] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("kind", "digest", "problem", "present")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        BLOB: _ClassVar[Finding.Kind]
        LAYER: _ClassVar[Finding.Kind]
    BLOB: Finding.Kind
    LAYER: Finding.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    kind: Finding.Kind
    digest: str
    problem: str
    present: bool
    def __init__(self, kind: _Optional[_Union[Finding.Kind, str]] = ..., digest: _Optional[str] = ..., problem: _Optional[str] = ..., present: _Optional[bool] = ...) -> None: ...
