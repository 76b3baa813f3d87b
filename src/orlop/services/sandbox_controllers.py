"""The sandbox Controller service: calls go to the controller that the request names."""

from __future__ import annotations

from collections.abc import Mapping

from orlop.api.events import sandbox_pb2 as events
from orlop.api.services.sandbox.v1 import sandbox_pb2 as pb
from orlop.core.container import Runtime
from orlop.core.event import Publisher
from orlop.core.sandbox import Sandbox
from orlop.core.wire import common
from orlop.core.wire import sandbox as wire
from orlop.errors import InvalidArgument, NotFound, OrlopError
from orlop.rpc.scope import scope_of
from orlop.rpc.service import Call
from orlop.sandbox.controller import ShimController


class SandboxControllerService:
    def __init__(self, controllers: Mapping[str, ShimController], publisher: Publisher) -> None:
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
            started = await controller.start(scope_of(call), request.sandbox_id)
        except OrlopError as error:
            raise error.within(f'failed to start sandbox "{request.sandbox_id}"') from None
        self._publish(call, "start", events.SandboxStart(sandbox_id=request.sandbox_id))
        answer = pb.ControllerStartResponse(
            sandbox_id=request.sandbox_id, pid=started.pid, created_at=started.created_at
        )
        shim = controller.find(scope_of(call).namespace, request.sandbox_id)
        if shim is not None:
            answer.address, answer.version = shim.bootstrap.address, shim.bootstrap.version
        return answer

    async def Platform(self, request: pb.ControllerPlatformRequest, call: Call) -> pb.ControllerPlatformResponse:
        answer = await self._named(request.sandboxer).platform(scope_of(call), request.sandbox_id)
        return pb.ControllerPlatformResponse(platform=answer.platform)

    async def Stop(self, request: pb.ControllerStopRequest, call: Call) -> pb.ControllerStopResponse:
        await self._named(request.sandboxer).stop(scope_of(call), request.sandbox_id, request.timeout_secs)
        return pb.ControllerStopResponse()

    async def Wait(self, request: pb.ControllerWaitRequest, call: Call) -> pb.ControllerWaitResponse:
        ended = await self._named(request.sandboxer).wait(scope_of(call), request.sandbox_id)
        exit = events.SandboxExit(
            sandbox_id=request.sandbox_id, exit_status=ended.exit_status, exited_at=ended.exited_at
        )
        self._publish(call, "exit", exit)
        return pb.ControllerWaitResponse(exit_status=ended.exit_status, exited_at=ended.exited_at)

    async def Status(self, request: pb.ControllerStatusRequest, call: Call) -> pb.ControllerStatusResponse:
        status = await self._named(request.sandboxer).status(
            scope_of(call), request.sandbox_id, verbose=request.verbose
        )
        return pb.ControllerStatusResponse(
            sandbox_id=status.sandbox_id,
            pid=status.pid,
            state=status.state,
            info=status.info,
            created_at=status.created_at,
            exited_at=status.exited_at,
            extra=status.extra,
        )

    async def Shutdown(self, request: pb.ControllerShutdownRequest, call: Call) -> pb.ControllerShutdownResponse:
        await self._named(request.sandboxer).shutdown(scope_of(call), request.sandbox_id)
        return pb.ControllerShutdownResponse()

    async def Metrics(self, request: pb.ControllerMetricsRequest, call: Call) -> pb.ControllerMetricsResponse:
        answer = await self._named(request.sandboxer).metrics(scope_of(call), request.sandbox_id)
        return pb.ControllerMetricsResponse(metrics=answer.metrics)

    async def Update(self, request: pb.ControllerUpdateRequest, call: Call) -> pb.ControllerUpdateResponse:
        """Nothing of a sandbox changes with its record: that a controller of this name is there is all that is said."""
        self._named(request.sandboxer)
        return pb.ControllerUpdateResponse()

    def _named(self, name: str) -> ShimController:
        if not name:
            raise InvalidArgument.verbatim("invalid argument: sandbox controller name can not be empty")
        try:
            return self._controllers[name]
        except KeyError:
            raise NotFound.verbatim(f"not found: failed to get sandbox controller by {name}") from None

    def _publish(
        self, call: Call, verb: str, event: events.SandboxCreate | events.SandboxStart | events.SandboxExit
    ) -> None:
        self._publisher.publish(scope_of(call).namespace, f"/sandboxes/{verb}", event)
