"""A sandbox controller that another process serves: `[proxy_plugins.NAME]` of type `sandbox`.

The process serves `containerd.services.sandbox.v1.Controller`. Its errors are passed on as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from orlop.api.services.sandbox.v1 import sandbox_pb2 as pb
from orlop.core.mount import Mount
from orlop.core.sandbox import Sandbox
from orlop.core.scope import Scope
from orlop.core.typed import Typed
from orlop.core.wire import common
from orlop.core.wire import sandbox as wire
from orlop.errors import Unavailable
from orlop.rpc.channel import Channel
from orlop.rpc.scope import headers_of

R = TypeVar("R", bound=Message)

_SERVICE = pb.DESCRIPTOR.services_by_name["Controller"].full_name
_FIRST_PAUSE = 0.128
_LONGEST_PAUSE = 4.096


class ProxyController:
    """The controller behind `channel`, which knows itself as `name`."""

    def __init__(self, name: str, channel: Channel) -> None:
        self._name = name
        self._channel = channel

    async def create(
        self,
        scope: Scope,
        sandbox: Sandbox,
        *,
        rootfs: Sequence[Mount] = (),
        options: Typed | None = None,
        netns_path: str = "",
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        request = pb.ControllerCreateRequest(
            sandbox_id=sandbox.id,
            rootfs=common.mounts(rootfs),
            options=common.any_of(options),
            netns_path=netns_path,
            annotations=dict(annotations or {}),
            sandbox=wire.sandbox(sandbox),
            sandboxer=self._name,
        )
        await self._call(scope, "Create", request, pb.ControllerCreateResponse)

    async def start(self, scope: Scope, id: str) -> pb.ControllerStartResponse:
        request = pb.ControllerStartRequest(sandbox_id=id, sandboxer=self._name)
        return await self._call(scope, "Start", request, pb.ControllerStartResponse)

    async def stop(self, scope: Scope, id: str, timeout: int) -> None:
        request = pb.ControllerStopRequest(sandbox_id=id, timeout_secs=timeout, sandboxer=self._name)
        await self._call(scope, "Stop", request, pb.ControllerStopResponse)

    async def shutdown(self, scope: Scope, id: str) -> None:
        request = pb.ControllerShutdownRequest(sandbox_id=id, sandboxer=self._name)
        await self._call(scope, "Shutdown", request, pb.ControllerShutdownResponse)

    async def wait(self, scope: Scope, id: str) -> pb.ControllerWaitResponse:
        """The process may be started anew meanwhile: while it is not there, it is asked again."""
        pause = _FIRST_PAUSE
        while True:
            try:
                request = pb.ControllerWaitRequest(sandbox_id=id, sandboxer=self._name)
                return await self._call(scope, "Wait", request, pb.ControllerWaitResponse)
            except Unavailable:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def status(self, scope: Scope, id: str, *, verbose: bool = False) -> pb.ControllerStatusResponse:
        request = pb.ControllerStatusRequest(sandbox_id=id, verbose=verbose, sandboxer=self._name)
        return await self._call(scope, "Status", request, pb.ControllerStatusResponse)

    async def platform(self, scope: Scope, id: str) -> pb.ControllerPlatformResponse:
        request = pb.ControllerPlatformRequest(sandbox_id=id, sandboxer=self._name)
        return await self._call(scope, "Platform", request, pb.ControllerPlatformResponse)

    async def metrics(self, scope: Scope, id: str) -> pb.ControllerMetricsResponse:
        request = pb.ControllerMetricsRequest(sandbox_id=id, sandboxer=self._name)
        return await self._call(scope, "Metrics", request, pb.ControllerMetricsResponse)

    async def update(self, scope: Scope, id: str, sandbox: Sandbox, fields: Sequence[str]) -> None:
        request = pb.ControllerUpdateRequest(
            sandbox_id=id, sandboxer=self._name, sandbox=wire.sandbox(sandbox), fields=fields
        )
        await self._call(scope, "Update", request, pb.ControllerUpdateResponse)

    async def _call(self, scope: Scope, method: str, request: Message, response: type[R]) -> R:
        return await self._channel.unary(f"/{_SERVICE}/{method}", request, response, headers_of(scope))
