"""Options of a task: those of our own shim and of runc's, which clients give, and what is filled in for this host."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from orlop.api.types.runc.options import oci_pb2
from orlop.core.task import NewTask
from orlop.core.typed import Typed
from orlop.core.wire import common
from orlop.errors import Unknown
from orlop.runtime.checkpoint import CHECKPOINT_TYPE
from orlop.runtime.seccomp_filters import SeccompFilters

RUNC_OPTIONS = oci_pb2.Options.DESCRIPTOR.full_name
CHECKPOINT_OPTIONS = oci_pb2.CheckpointOptions.DESCRIPTOR.full_name


class OciRuntimes(Protocol):
    """The choice of the OCI runtime, made once for the host."""

    def for_spec(self, spec: bytes | None, *, restores: bool = False) -> str: ...

    def as_taken(self, spec: bytes | None, runtime: str) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class Filled:
    """What a task's options and spec have come to."""

    options: Typed | None
    spec: bytes | None
    root: str = ""
    """Where the OCI runtime keeps its state."""
    profile: bytes | None = None
    """Of seccomp, whose filter can be had from the container."""


class Defaults:
    """What a task gets where its options say nothing: the runtime for this host, and its state below ours.

    Two daemons that shared the runtime's state directory would collide on equal ids.
    """

    def __init__(self, runtime: OciRuntimes, root: str) -> None:
        self.runtime = runtime
        self._root = root
        self._filters = SeccompFilters()

    def applied(self, options: Typed | None, spec: bytes | None, *, restores: bool) -> Filled:
        """The options filled in, and `spec` as the runtime takes it; `restores`: from a checkpoint."""
        if options is not None and options.value and options.type_name != RUNC_OPTIONS:
            return Filled(options, spec)
        filled = oci_pb2.Options()
        if options is not None and not parse(filled, options.value):
            return Filled(options, spec)
        if not filled.binary_name:
            filled.binary_name = self.runtime.for_spec(spec, restores=restores)
        filled.root = filled.root or self._root
        spec, profile = self.runtime.as_taken(spec, filled.binary_name), None
        if spec is not None and os.path.basename(filled.binary_name) == "crun":
            spec, profile = self._filters.applied(spec)
        return Filled(common.pack(filled), spec, filled.root, profile)

    def learn(self, filled: Filled, namespace: str, id: str) -> None:
        """Takes up what can be had from the container of `filled`, which the runtime has created."""
        if filled.profile is not None:
            self._filters.learn(filled.profile, os.path.join(filled.root, namespace, id))


def runc_options(options: Typed | None, runtime: str) -> oci_pb2.Options:
    """Raises Unknown if they are of another kind."""
    parsed = oci_pb2.Options()
    if options is not None and (options.type_name != RUNC_OPTIONS or not parse(parsed, options.value)):
        raise Unknown(f"invalid task create option for {runtime}")
    return parsed


def checkpoint_options(options: Typed | None, runtime: str) -> oci_pb2.CheckpointOptions:
    """Raises Unknown if they are of another kind."""
    parsed = oci_pb2.CheckpointOptions()
    if options is not None and (options.type_name != CHECKPOINT_OPTIONS or not parse(parsed, options.value)):
        raise Unknown(f"invalid task checkpoint option for {runtime}")
    return parsed


def restore_path(new: NewTask, options: oci_pb2.Options) -> str:
    """The directory of a checkpoint that the caller names; empty for none, and where it is content."""
    if options.criu_image_path:
        return options.criu_image_path
    if new.checkpoint is None:
        return ""
    path = new.checkpoint.annotations.get("RestoreFromPath", "")
    if path:
        return path
    if new.checkpoint.media_type != CHECKPOINT_TYPE:
        raise Unknown(f'unsupported checkpoint type "{new.checkpoint.media_type}"')
    return ""


def parse(message: oci_pb2.Options | oci_pb2.CheckpointOptions, value: bytes) -> bool:
    """Fills `message`; False if `value` is none."""
    try:
        message.ParseFromString(value)
    except DecodeError:
        return False
    return True
