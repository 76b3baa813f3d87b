"""gRPC's standard health service: who can answer, is healthy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from orlop.api.grpc_health.v1 import health_pb2
from orlop.errors import NotFound
from orlop.rpc.service import Call, Service


class HealthService:
    """The server as a whole (service "") is serving for as long as there is somebody to say so."""

    async def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> health_pb2.HealthCheckResponse:
        if request.service:
            raise NotFound.verbatim("unknown service")
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, call: Call
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The state now and after each change; there is none, so the stream stays open until either end leaves."""
        status = health_pb2.HealthCheckResponse
        yield status(status=status.SERVICE_UNKNOWN if request.service else status.SERVING)
        await asyncio.get_running_loop().create_future()


def service() -> Service:
    return Service(health_pb2.DESCRIPTOR.services_by_name["Health"], HealthService())
