"""The plugins of the services: one a noun for each gRPC service, and the stores under the ids that clients expect.

Each imports what it serves when it starts, so that one that cannot be imported fails alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from orlop.core.plugin import InitContext, PluginType, Registration

Init = Callable[[InitContext], Awaitable[Any]]
T = PluginType


def _metadata(context: InitContext) -> Any:
    return context.get_by_id(T.METADATA, "bolt")


def _store(noun: str) -> Init:
    """A plugin that is the store `noun` of the metadata plugin."""

    async def init(context: InitContext) -> Any:
        store: Any = getattr(_metadata(context), noun)
        return store

    return init


def _noun(id: str) -> Callable[[InitContext], Any]:
    """The store that the plugin `<id>-service` is."""
    return lambda context: context.get_by_id(T.SERVICE, f"{id}-service")


def _service(module: str, name: str, wire: str, servicer: str, subject: Callable[[InitContext], Any]) -> Init:
    """A plugin that offers `servicer` of `orlop.services.<module>` as service `name` of the messages in `wire`."""

    async def init(context: InitContext) -> Any:
        from importlib import import_module

        from orlop.rpc.service import Service

        descriptor = import_module(f"orlop.api.{wire}").DESCRIPTOR.services_by_name[name]
        kind = getattr(import_module(f"orlop.services.{module}"), servicer)
        return Service(descriptor, kind(subject(context)))

    return init


async def _deprecations(_context: InitContext) -> Any:
    from orlop.services.deprecations import Deprecations

    deprecations = Deprecations()
    deprecations.note_host()
    return deprecations


async def _introspection(context: InitContext) -> Any:
    from orlop.services.introspection import IntrospectionService

    # The directory has the name that it has under containerd: that of the gRPC service.
    root = context.daemon.root / f"{T.GRPC}.introspection"
    root.mkdir(mode=0o700, exist_ok=True)
    root.chmod(0o700)
    return IntrospectionService(root, context.plugins, context.get(T.WARNING))


async def _introspection_grpc(context: InitContext) -> Any:
    from orlop.api.services.introspection.v1 import introspection_pb2
    from orlop.rpc.service import Service

    servicer = context.get_by_id(T.SERVICE, "introspection-service")
    return Service(introspection_pb2.DESCRIPTOR.services_by_name["Introspection"], servicer)


async def _version(context: InitContext) -> Any:
    from orlop.api.services.version.v1 import version_pb2
    from orlop.rpc.service import Service
    from orlop.services.version import VersionService, told

    servicer = VersionService(told(context.daemon.version), context.daemon.revision)
    return Service(version_pb2.DESCRIPTOR.services_by_name["Version"], servicer)


async def _health(_context: InitContext) -> Any:
    from orlop.rpc import health

    return health.service()


async def _content(context: InitContext) -> Any:
    from orlop.api.services.content.v1 import content_pb2
    from orlop.core.diff import WatchingDiffer
    from orlop.rpc.service import Service
    from orlop.services.content import ContentService

    differs = context.get_all(T.DIFFER).values()
    watcher = next((one.watcher for one in differs if isinstance(one, WatchingDiffer)), None)
    servicer = ContentService(context.get_by_id(T.SERVICE, "content-service"), watcher)
    return Service(content_pb2.DESCRIPTOR.services_by_name["Content"], servicer)


async def _ttrpc_events(context: InitContext) -> Any:
    from orlop.api.services.ttrpc.events.v1 import events_pb2
    from orlop.rpc.service import Service
    from orlop.services.ttrpc_events import TtrpcEventsService

    servicer = TtrpcEventsService(context.get(T.EVENT))
    return Service(events_pb2.DESCRIPTOR.services_by_name["Events"], servicer)


async def _tasks(context: InitContext) -> Any:
    return context.get_by_id(T.RUNTIME, "task")


async def _streaming(context: InitContext) -> Any:
    from orlop.api.services.streaming.v1 import streaming_pb2
    from orlop.rpc.service import Service
    from orlop.services.streaming import StreamingService

    servicer = StreamingService(context.get_by_id(T.STREAMING, "manager"))
    return Service(streaming_pb2.DESCRIPTOR.services_by_name["Streaming"], servicer)


async def _transfer(context: InitContext) -> Any:
    from orlop.api.services.transfer.v1 import transfer_pb2
    from orlop.rpc.service import Service
    from orlop.services.transfer import TransferService

    transferrers = list(context.get_all(T.TRANSFER).values())
    servicer = TransferService(transferrers, context.get_by_id(T.STREAMING, "manager"))
    return Service(transfer_pb2.DESCRIPTOR.services_by_name["Transfer"], servicer)


def _sandboxes(context: InitContext) -> Any:
    return context.get_by_id(T.SANDBOX_STORE, "local")


async def _sandbox_controllers(context: InitContext) -> Any:
    from orlop.api.services.sandbox.v1 import sandbox_pb2
    from orlop.rpc.service import Service
    from orlop.services.sandbox_controllers import SandboxControllerService

    servicer = SandboxControllerService(context.get_all(T.SANDBOX_CONTROLLER), context.get(T.EVENT).publisher)
    return Service(sandbox_pb2.DESCRIPTOR.services_by_name["Controller"], servicer)


def _leases(context: InitContext) -> Any:
    return context.get_by_id(T.LEASE, "manager")


def _mounts(context: InitContext) -> Any:
    return context.get_by_id(T.MOUNT_MANAGER, "bolt")


def _exchange(context: InitContext) -> Any:
    return context.get(T.EVENT)


def _grpc(id: str, requires: tuple[str, ...], init: Init) -> Registration:
    return Registration(T.GRPC, id, init, requires)


def _of(id: str, name: str, servicer: str, subject: Callable[[InitContext], Any], *requires: str) -> Registration:
    wire = {"namespaces": "services.namespaces.v1.namespace_pb2", "sandboxes": "services.sandbox.v1.sandbox_pb2"}
    module = wire.get(id, f"services.{id}.v1.{id}_pb2")
    return _grpc(id, requires, _service(id, name, module, servicer, subject))


REGISTRATIONS: tuple[Registration, ...] = (
    Registration(T.WARNING, "deprecations", _deprecations),
    Registration(T.SERVICE, "containers-service", _store("containers"), (T.METADATA,)),
    Registration(T.SERVICE, "content-service", _store("content"), (T.METADATA,)),
    Registration(T.SERVICE, "images-service", _store("images"), (T.METADATA, T.GC)),
    Registration(T.SERVICE, "introspection-service", _introspection, (T.WARNING,)),
    Registration(T.SERVICE, "namespaces-service", _store("namespaces"), (T.METADATA, T.EVENT)),
    Registration(T.SERVICE, "snapshots-service", _store("snapshots"), (T.METADATA,)),
    Registration(T.SERVICE, "tasks-service", _tasks, (T.RUNTIME, T.METADATA, T.TASK_MONITOR)),
    _of("containers", "Containers", "ContainersService", _noun("containers"), T.SERVICE),
    _grpc("content", (T.SERVICE, T.DIFFER), _content),
    _of("diff", "Diff", "DiffService", _noun("diff"), T.SERVICE),
    _of("events", "Events", "EventsService", _exchange, T.EVENT),
    _of("images", "Images", "ImagesService", _noun("images"), T.SERVICE),
    _grpc("introspection", (T.SERVICE,), _introspection_grpc),
    _of("integrity", "Integrity", "IntegrityService", _noun("integrity"), T.SERVICE),
    _of("leases", "Leases", "LeasesService", _leases, T.LEASE),
    _of("mounts", "Mounts", "MountsService", _mounts, T.MOUNT_MANAGER),
    _of("namespaces", "Namespaces", "NamespacesService", _noun("namespaces"), T.SERVICE),
    _of("sandboxes", "Store", "SandboxStoreService", _sandboxes, T.SANDBOX_STORE),
    _grpc("sandbox-controllers", (T.SANDBOX_CONTROLLER, T.EVENT), _sandbox_controllers),
    _of("snapshots", "Snapshots", "SnapshotsService", _noun("snapshots"), T.SERVICE),
    _grpc("streaming", (T.STREAMING,), _streaming),
    _of("tasks", "Tasks", "TasksService", _noun("tasks"), T.SERVICE),
    _grpc("transfer", (T.TRANSFER, T.STREAMING), _transfer),
    _grpc("version", (), _version),
    _grpc("healthcheck", (), _health),
    Registration(T.TTRPC, "events", _ttrpc_events, (T.EVENT,)),
)
