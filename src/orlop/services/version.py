"""The Version service.

Clients decide by the version what they may ask for: nerdctl, say, uses the Transfer service from 2.0 on. So it is that
of the containerd whose API this is, and our own is its build metadata, which no comparison looks at.
"""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.version.v1.version_pb2 import VersionResponse
from orlop.rpc.service import Call

API = "2.4.0"
"""The version of containerd whose API is served."""


def told(version: str) -> str:
    """What clients are told of a daemon of this `version`."""
    return f"{API}+orlop.{version}"


class VersionService:
    def __init__(self, version: str, revision: str) -> None:
        self._answer = VersionResponse(version=version, revision=revision)

    async def Version(self, request: Empty, call: Call) -> VersionResponse:
        return self._answer
