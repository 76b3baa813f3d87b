"""The Version service."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.version.v1.version_pb2 import VersionResponse
from orlop.rpc.service import Call


class VersionService:
    def __init__(self, version: str, revision: str) -> None:
        self._answer = VersionResponse(version=version, revision=revision)

    async def Version(self, request: Empty, call: Call) -> VersionResponse:
        return self._answer
