"""orlop.services.integrity.v1.Integrity."""

from __future__ import annotations

from collections.abc import AsyncIterator

from orlop.api.services.integrity.v1 import integrity_pb2 as api
from orlop.core.integrity import Checker
from orlop.rpc.scope import scope_of
from orlop.rpc.service import Call


class IntegrityService:
    """Decodes, asks a checker, encodes."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker

    async def Check(self, request: api.CheckRequest, call: Call) -> AsyncIterator[api.Finding]:
        found = self._checker.check(scope_of(call), list(request.blobs), list(request.layers), discard=request.discard)
        async for finding in found:
            yield api.Finding(
                kind=api.Finding.BLOB if finding.kind == "blob" else api.Finding.LAYER,
                digest=finding.digest,
                problem=finding.problem,
                present=finding.present,
            )
