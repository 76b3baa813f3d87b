"""Options of a task: those of our own shim and of runc's, which clients give, and what is filled in for this host."""

from __future__ import annotations

from typing import Protocol

from google.protobuf.message import DecodeError

from orlop.api.types.runc.options import oci_pb2
from orlop.core.task import NewTask
from orlop.core.typed import Typed
from orlop.core.wire import common
from orlop.errors import Unknown
from orlop.runtime.checkpoint import CHECKPOINT_TYPE

RUNC_OPTIONS = oci_pb2.Options.DESCRIPTOR.full_name
CHECKPOINT_OPTIONS = oci_pb2.CheckpointOptions.DESCRIPTOR.full_name


class OciRuntimes(Protocol):
    """The choice of the OCI runtime, made once for the host."""

    def for_spec(self, spec: bytes | None, *, restores: bool = False) -> str: ...

    def as_taken(self, spec: bytes | None, runtime: str) -> bytes | None: ...


class Defaults:
    """What a task gets where its options say nothing: the runtime for this host, and its state below ours.

    Two daemons that shared the runtime's state directory would collide on equal ids.
    """

    def __init__(self, runtime: OciRuntimes, root: str) -> None:
        self.runtime = runtime
        self._root = root

    def applied(
        self, options: Typed | None, spec: bytes | None, *, restores: bool
    ) -> tuple[Typed | None, bytes | None]:
        """The options filled in, and `spec` as the runtime takes it; `restores`: from a checkpoint."""
        if options is not None and options.value and options.type_name != RUNC_OPTIONS:
            return options, spec
        filled = oci_pb2.Options()
        if options is not None and not parse(filled, options.value):
            return options, spec
        if not filled.binary_name:
            filled.binary_name = self.runtime.for_spec(spec, restores=restores)
        filled.root = filled.root or self._root
        return common.pack(filled), self.runtime.as_taken(spec, filled.binary_name)


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
