"""The controller `shim`: a sandbox is a shim with the Sandbox service, into which its containers go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from orlop.api.runtime.sandbox.v1 import sandbox_pb2 as api
from orlop.api.services.sandbox.v1 import sandbox_pb2 as pb
from orlop.core import clock
from orlop.core.mount import Mount
from orlop.core.sandbox import Sandbox
from orlop.core.scope import Scope
from orlop.core.typed import Typed
from orlop.core.wire import common
from orlop.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    OrlopError,
    Unavailable,
    Unknown,
)
from orlop.rpc.ttrpc import Client
from orlop.runtime.bundle import Bundle, Bundles
from orlop.runtime.owner import Owner
from orlop.runtime.shim import Shim
from orlop.runtime.shims import ShimManager

log = logging.getLogger(__name__)
R = TypeVar("R", bound=Message)

SERVICE = "containerd.runtime.sandbox.v1.Sandbox"
Key = tuple[str, str]


class ShimController:
    """Sandboxes of all namespaces, by namespace and id. Errors are worded as containerd's clients know them."""

    def __init__(self, bundles: Bundles, shims: ShimManager) -> None:
        self._bundles = bundles
        self._shims = shims
        self._sandboxes: dict[Key, Shim] = {}
        self._busy: set[Key] = set()
        self._owner = Owner()

    def find(self, namespace: str, id: str) -> Shim | None:
        """The shim of a sandbox that is there."""
        shim = self._sandboxes.get((namespace, id))
        return None if shim is None or shim.dead else shim

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
        key = (scope.namespace, sandbox.id)
        if key in self._busy or key in self._sandboxes:
            raise AlreadyExists(f"sandbox {sandbox.id} already running")
        self._busy.add(key)
        starting = self._owner.start(self._start_shim(scope, sandbox), f"shim of sandbox {sandbox.id}")
        try:
            shim = await asyncio.shield(starting)
            request = api.CreateSandboxRequest(
                sandbox_id=sandbox.id,
                bundle_path=str(shim.bundle.path),
                rootfs=common.mounts(rootfs),
                options=common.any_of(options),
                netns_path=netns_path,
                annotations=dict(annotations or {}),
            )
            try:
                await self._call(shim, "CreateSandbox", request, api.CreateSandboxResponse)
            except OrlopError as error:
                raise error.within(f"failed to create sandbox {sandbox.id}") from None
        except BaseException:
            # The id is free again only when nothing is left; that goes on even if this call is given up.
            await self._owner.finish(self._undo(key, starting), f"undoing sandbox {sandbox.id}")
            raise
        self._add(shim)
        self._busy.discard(key)

    async def _start_shim(self, scope: Scope, sandbox: Sandbox) -> Shim:
        binary = self._shims.binaries.resolve(sandbox.runtime.name)
        spec = sandbox.spec.value if sandbox.spec is not None else None
        bundle = await asyncio.to_thread(self._bundles.create, scope.namespace, sandbox.id, spec)
        try:
            return await self._shims.start(bundle, binary, sandbox.runtime.options, spec)
        except OrlopError as error:
            await self._shims.forget(bundle)
            raise error.within(f"failed to start new shim for sandbox {sandbox.id}") from None

    async def _undo(self, key: Key, starting: asyncio.Task[Shim]) -> None:
        try:
            with contextlib.suppress(OrlopError, OSError):
                await self._give_up(await starting)
        finally:
            self._busy.discard(key)

    async def start(self, scope: Scope, id: str) -> pb.ControllerStartResponse:
        shim = self.find(scope.namespace, id)
        if shim is None:
            raise Unknown(f'unable to find sandbox "{id}"')
        try:
            request = api.StartSandboxRequest(sandbox_id=id)
            started = await self._call(shim, "StartSandbox", request, api.StartSandboxResponse)
        except FailedPrecondition as error:  # it runs already, which is not to be its end
            raise error.within(f"failed to start sandbox {id}") from None
        except OrlopError as error:
            await self._owner.finish(self._give_up(shim), f"end of sandbox {id}")
            raise error.within(f"failed to start sandbox {id}") from None
        where = shim.bootstrap
        return pb.ControllerStartResponse(
            sandbox_id=id,
            pid=started.pid,
            created_at=started.created_at,
            address=f"{where.protocol}+{where.address}",
            version=where.version,
        )

    async def stop(self, scope: Scope, id: str, timeout: int) -> None:
        shim = self.find(scope.namespace, id)
        if shim is None:
            return
        try:
            request = api.StopSandboxRequest(sandbox_id=id, timeout_secs=timeout)
            await self._call(shim, "StopSandbox", request, api.StopSandboxResponse)
        except (NotFound, Unavailable):
            return
        except OrlopError as error:
            raise error.within("failed to stop sandbox") from None

    async def shutdown(self, scope: Scope, id: str) -> None:
        shim = self._require(scope, id)
        try:
            request = api.ShutdownSandboxRequest(sandbox_id=id)
            await self._call(shim, "ShutdownSandbox", request, api.ShutdownSandboxResponse)
        except OrlopError as error:
            raise error.within("failed to shutdown sandbox") from None
        await self._owner.finish(self._end(shim), f"end of sandbox {id}")

    async def wait(self, scope: Scope, id: str) -> pb.ControllerWaitResponse:
        try:
            request = api.WaitSandboxRequest(sandbox_id=id)
            ended = await self._call(self._require(scope, id), "WaitSandbox", request, api.WaitSandboxResponse)
        except NotFound:
            raise
        except OrlopError as error:
            raise error.within(f"failed to wait sandbox {id}") from None
        return pb.ControllerWaitResponse(exit_status=ended.exit_status, exited_at=ended.exited_at)

    async def status(self, scope: Scope, id: str, *, verbose: bool = False) -> pb.ControllerStatusResponse:
        """One that is not there has ended just now."""
        shim = self.find(scope.namespace, id)
        if shim is not None:
            try:
                request = api.SandboxStatusRequest(sandbox_id=id, verbose=verbose)
                return _status(await self._call(shim, "SandboxStatus", request, api.SandboxStatusResponse))
            except OrlopError:
                if shim.is_running:
                    raise
        return pb.ControllerStatusResponse(sandbox_id=id, exited_at=common.timestamp(clock.now()))

    async def platform(self, scope: Scope, id: str) -> pb.ControllerPlatformResponse:
        request = api.PlatformRequest(sandbox_id=id)
        answer = await self._call(self._require(scope, id), "Platform", request, api.PlatformResponse)
        return pb.ControllerPlatformResponse(platform=answer.platform)

    async def metrics(self, scope: Scope, id: str) -> pb.ControllerMetricsResponse:
        request = api.SandboxMetricsRequest(sandbox_id=id)
        answer = await self._call(self._require(scope, id), "SandboxMetrics", request, api.SandboxMetricsResponse)
        return pb.ControllerMetricsResponse(metrics=answer.metrics)

    async def update(self, scope: Scope, id: str, sandbox: Sandbox, fields: Sequence[str]) -> None:
        """Nothing of a shim changes with the sandbox's record."""

    async def load_existing(self) -> None:
        """Connects to the sandboxes that an earlier daemon started; what is left of others is removed."""
        for bundle in await asyncio.to_thread(lambda: list(self._bundles.walk())):
            try:
                await self._load(bundle)
            except (OSError, OrlopError) as error:
                log.warning("sandbox of %s is gone: %s", bundle.path, error)
                await asyncio.to_thread(bundle.remove)

    async def close(self) -> None:
        """Lets go of all sandboxes, which run on."""
        for shim in list(self._sandboxes.values()):
            await shim.close()
        await self._owner.close()

    async def _load(self, bundle: Bundle) -> None:
        recorded = bundle.bootstrap()
        if recorded is None:
            raise NotFound(f"address of sandbox {bundle.id}")
        limit = self._shims.limits.load
        shim = Shim(bundle, recorded, bundle.binary(), await Client.connect(recorded.address, limit))
        try:
            await shim.identify(limit)
            await self._call(shim, "PingSandbox", api.PingRequest(sandbox_id=bundle.id), api.PingResponse, limit)
        except DeadlineExceeded:
            log.warning("sandbox of %s does not answer", bundle.path)  # it may be stopped or slow, and has containers
        except NotFound:
            log.info("shim of %s has no sandbox: it is ended", bundle.path)
            await self._end(shim)
            return
        except OrlopError:
            await shim.close()
            raise
        self._add(shim)

    def _add(self, shim: Shim) -> None:
        self._sandboxes[shim.key] = shim
        self._owner.start(self._watch(shim), f"watch of sandbox {shim.id}")

    async def _watch(self, shim: Shim) -> None:
        while True:
            await shim.wait_closed()
            if shim.ending:
                return
            if not (shim.is_running and await shim.reconnect(self._shims.limits.state)):
                break
            log.info("sandbox %s: connected to its shim again", shim.id)
        log.warning("sandbox %s: its shim is gone", shim.id)
        shim.dead = True
        await self._end(shim)

    async def _give_up(self, shim: Shim) -> None:
        """Ends a sandbox that is of no use, and its shim with it."""
        with contextlib.suppress(OrlopError):
            request = api.ShutdownSandboxRequest(sandbox_id=shim.id)
            limit = self._shims.limits.shutdown
            await self._call(shim, "ShutdownSandbox", request, api.ShutdownSandboxResponse, limit)
        await self._end(shim)

    async def _end(self, shim: Shim) -> None:
        """Ends the shim, unless containers keep it, and removes the bundle."""
        await shim.shut_down(self._shims.limits.shutdown)
        await shim.close()
        await self._shims.forget(shim.bundle)
        if self._sandboxes.get(shim.key) is shim:
            del self._sandboxes[shim.key]

    def _require(self, scope: Scope, id: str) -> Shim:
        shim = self.find(scope.namespace, id)
        if shim is None:
            raise NotFound(f"sandbox {id}")
        return shim

    async def _call(
        self, shim: Shim, method: str, request: Message, response: type[R], timeout: float | None = None
    ) -> R:
        return await shim.ask(SERVICE, method, request, response, timeout)


def _status(told: api.SandboxStatusResponse) -> pb.ControllerStatusResponse:
    return pb.ControllerStatusResponse(
        sandbox_id=told.sandbox_id,
        pid=told.pid,
        state=told.state,
        info=told.info,
        created_at=told.created_at,
        exited_at=told.exited_at,
        extra=told.extra,
    )
