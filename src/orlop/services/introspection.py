"""The Introspection service: what this daemon is, and which plugins it has."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from orlop import faults
from orlop.api.services.introspection.v1 import introspection_pb2 as api
from orlop.api.types import introspection_pb2 as types
from orlop.core import filters
from orlop.core.plugin import PluginStatus
from orlop.core.wire import common
from orlop.errors import InvalidArgument, NotFound, OrlopError, Unimplemented, Unknown
from orlop.rpc.service import Call
from orlop.services.deprecations import Deprecations

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class IntrospectionService:
    def __init__(self, root: Path, plugins: Callable[[], Sequence[PluginStatus]], deprecations: Deprecations) -> None:
        self._identity = Identity(root)
        self._plugins = plugins
        self._deprecations = deprecations

    async def Server(self, request: Empty, call: Call) -> api.ServerResponse:
        return api.ServerResponse(
            uuid=await self._identity.uuid(),
            pid=os.getpid(),
            pidns=os.stat("/proc/self/ns/pid").st_ino,
            deprecations=[
                api.DeprecationWarning(
                    id=warning.id,
                    message=warning.message,
                    last_occurrence=common.timestamp(warning.last_occurrence),
                )
                for warning in self._deprecations.warnings()
            ],
        )

    async def Plugins(self, request: api.PluginsRequest, call: Call) -> api.PluginsResponse:
        try:
            accepts = filters.parse(list(request.filters))
        except OrlopError as error:
            raise InvalidArgument.verbatim(
                f"invalid argument: {str(error).removesuffix(': invalid argument')}"
            ) from None
        return api.PluginsResponse(
            plugins=[plugin_of(status) for status in self._plugins() if accepts(_adaptor(status))]
        )

    async def PluginInfo(self, request: api.PluginInfoRequest, call: Call) -> api.PluginInfoResponse:
        status = self._find(request.type, request.id)
        response = api.PluginInfoResponse(plugin=plugin_of(status))
        if not request.HasField("options"):
            return response
        information = getattr(status.instance, "runtime_info", None)
        if information is None:
            raise Unimplemented("plugin does not provided extra information")
        typed = common.typed_of(request.options)
        wanted = types.RuntimeRequest.DESCRIPTOR.full_name
        if typed.type_name != wanted:
            raise InvalidArgument(f"options of {request.type}.{request.id} must be {wanted}, not {typed.type_name!r}")
        question = types.RuntimeRequest()
        try:
            question.ParseFromString(typed.value)
        except DecodeError as error:
            raise InvalidArgument(f"options of {request.type}.{request.id}: {error}") from None
        extra = common.any_of(common.pack(await information(question)))
        if extra is not None:
            response.extra.CopyFrom(extra)
        return response

    def _find(self, type: str, id: str) -> PluginStatus:
        for status in self._plugins():
            if status.registration.type == type and status.registration.id == id:
                return status
        raise NotFound(f"plugin {type}.{id} not found")


class Identity:
    """The random UUID of this daemon's root directory: made when first asked for, and kept in a file."""

    def __init__(self, root: Path) -> None:
        self._path = root / "uuid"
        self._lock = threading.Lock()
        self._uuid = ""

    async def uuid(self) -> str:
        return self._uuid or await asyncio.to_thread(self._load)

    def _load(self) -> str:
        with self._lock:
            if not self._uuid:
                found = self._read()
                if not _UUID.fullmatch(found):
                    found = str(uuid.uuid4())
                    self._write(found)
                self._uuid = found
        return self._uuid

    def _read(self) -> str:
        try:
            with self._path.open("rb") as file:
                return file.read(64).decode("ascii", "replace").strip("\n")
        except FileNotFoundError:
            return ""

    def _write(self, text: str) -> None:
        partial = self._path.with_name("uuid.new")
        with partial.open("w") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        faults.point("introspection.uuid.written")
        partial.rename(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def plugin_of(status: PluginStatus) -> api.Plugin:
    return api.Plugin(
        type=status.registration.type,
        id=status.registration.id,
        requires=status.registration.requires,
        platforms=[common.platform(platform) for platform in status.meta.platforms],
        exports=status.meta.exports,
        capabilities=status.meta.capabilities,
        init_err=_init_error(status),
    )


def _init_error(status: PluginStatus) -> Status | None:
    error = status.error
    if error is None:
        return None
    text = str(error) or type(error).__name__
    if status.skipped:
        text = f"skip plugin: {error}" if str(error) else "skip plugin"
    code = error.code if isinstance(error, OrlopError) else Unknown.code
    return Status(code=code, message=text)


def _adaptor(status: PluginStatus) -> filters.Adaptor:
    def answer(path: Sequence[str]) -> tuple[str, bool]:
        match list(path):
            case ["type"]:
                return status.registration.type, True
            case ["id"]:
                return status.registration.id, True
        return "", False

    return answer
