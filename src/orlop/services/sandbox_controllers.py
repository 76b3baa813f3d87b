"""The sandbox Controller service: calls go to the controller that the request names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from orlop.api.events import sandbox_pb2 as events
from orlop.api.services.sandbox.v1 import sandbox_pb2 as pb
from orlop.core.container import Runtime
from orlop.core.event import Publisher
from orlop.core.mount import Mount
from orlop.core.sandbox import Sandbox
from orlop.core.scope import Scope
from orlop.core.typed import Typed
from orlop.core.wire import common
from orlop.core.wire import sandbox as wire
from orlop.errors import InvalidArgument, NotFound, OrlopError, Unimplemented, Unknown
from orlop.rpc.scope import scope_of
from orlop.rpc.service import Call

_OF_CRI = "podsandbox"


class Controller(Protocol):
    """What runs sandboxes: those of our own shims, or another process."""

    async def create(
        self,
        scope: Scope,
        sandbox: Sandbox,
        *,
        rootfs: Sequence[Mount] = (),
        options: Typed | None = None,
        netns_path: str = "",
        annotations: Mapping[str, str] | None = None,
    ) -> None: ...

    async def start(self, scope: Scope, id: str) -> pb.ControllerStartResponse: ...

    async def stop(self, scope: Scope, id: str, timeout: int) -> None:
        """`timeout` is in seconds."""

    async def shutdown(self, scope: Scope, id: str) -> None: ...

    async def wait(self, scope: Scope, id: str) -> pb.ControllerWaitResponse: ...

    async def status(self, scope: Scope, id: str, *, verbose: bool = False) -> pb.ControllerStatusResponse: ...

    async def platform(self, scope: Scope, id: str) -> pb.ControllerPlatformResponse: ...

    async def metrics(self, scope: Scope, id: str) -> pb.ControllerMetricsResponse: ...

    async def update(self, scope: Scope, id: str, sandbox: Sandbox, fields: Sequence[str]) -> None: ...


class SandboxControllerService:
    def __init__(self, controllers: Mapping[str, Controller], publisher: Publisher) -> None:
        self._controllers = controllers
        self._publisher = publisher

    async def Create(self, request: pb.ControllerCreateRequest, call: Call) -> pb.ControllerCreateResponse:
        controller = self._named(request.sandboxer)
        has_record = request.HasField("sandbox")
        sandbox = wire.sandbox_of(request.sandbox) if has_record else Sandbox(request.sandbox_id, Runtime(""))
        await controller.create(
            scope_of(call),
            sandbox,
            rootfs=[common.mount_of(mount) for mount in request.rootfs],
            options=common.optional_typed(request, "options"),
            netns_path=request.netns_path,
            annotations=dict(request.annotations),
        )
        self._publish(call, "create", events.SandboxCreate(sandbox_id=request.sandbox_id))
        return pb.ControllerCreateResponse(sandbox_id=request.sandbox_id)

    async def Start(self, request: pb.ControllerStartRequest, call: Call) -> pb.ControllerStartResponse:
        controller = self._named(request.sandboxer)
        try:
            answer = await controller.start(scope_of(call), request.sandbox_id)
        except OrlopError as error:
            raise error.within(f'failed to start sandbox "{request.sandbox_id}"') from None
        self._publish(call, "start", events.SandboxStart(sandbox_id=request.sandbox_id))
        return answer

    async def Platform(self, request: pb.ControllerPlatformRequest, call: Call) -> pb.ControllerPlatformResponse:
        return await self._named(request.sandboxer).platform(scope_of(call), request.sandbox_id)

    async def Stop(self, request: pb.ControllerStopRequest, call: Call) -> pb.ControllerStopResponse:
        await self._named(request.sandboxer).stop(scope_of(call), request.sandbox_id, request.timeout_secs)
        return pb.ControllerStopResponse()

    async def Wait(self, request: pb.ControllerWaitRequest, call: Call) -> pb.ControllerWaitResponse:
        ended = await self._named(request.sandboxer).wait(scope_of(call), request.sandbox_id)
        exit = events.SandboxExit(
            sandbox_id=request.sandbox_id, exit_status=ended.exit_status, exited_at=ended.exited_at
        )
        self._publish(call, "exit", exit)
        return ended

    async def Status(self, request: pb.ControllerStatusRequest, call: Call) -> pb.ControllerStatusResponse:
        controller = self._named(request.sandboxer)
        return await controller.status(scope_of(call), request.sandbox_id, verbose=request.verbose)

    async def Shutdown(self, request: pb.ControllerShutdownRequest, call: Call) -> pb.ControllerShutdownResponse:
        await self._named(request.sandboxer).shutdown(scope_of(call), request.sandbox_id)
        return pb.ControllerShutdownResponse()

    async def Metrics(self, request: pb.ControllerMetricsRequest, call: Call) -> pb.ControllerMetricsResponse:
        return await self._named(request.sandboxer).metrics(scope_of(call), request.sandbox_id)

    async def Update(self, request: pb.ControllerUpdateRequest, call: Call) -> pb.ControllerUpdateResponse:
        controller = self._named(request.sandboxer)
        if not request.HasField("sandbox"):
            raise Unknown("sandbox can not be nil")
        sandbox = wire.sandbox_of(request.sandbox)
        await controller.update(scope_of(call), request.sandbox_id, sandbox, list(request.fields))
        return pb.ControllerUpdateResponse()

    def _named(self, name: str) -> Controller:
        if not name:
            raise InvalidArgument.verbatim("invalid argument: sandbox controller name can not be empty")
        try:
            return self._controllers[name]
        except KeyError:
            if name == _OF_CRI:
                raise Unimplemented(f"sandbox controller {name}, which is a part of containerd's CRI plugin") from None
            raise NotFound.verbatim(f"not found: failed to get sandbox controller by {name}") from None

    def _publish(
        self, call: Call, verb: str, event: events.SandboxCreate | events.SandboxStart | events.SandboxExit
    ) -> None:
        self._publisher.publish(scope_of(call).namespace, f"/sandboxes/{verb}", event)
