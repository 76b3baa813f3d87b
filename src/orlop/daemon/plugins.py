"""The graph of plugins: found, ordered by what they require, started one after another, closed in reverse.

One that fails is logged and left out, and whatever requires it fails in turn by not finding it; only a plugin that the
configuration requires stops the daemon.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orlop.core import clock
from orlop.core.plugin import DaemonInfo, PluginMeta, PluginStatus, PluginType, Registration, SkipPlugin
from orlop.daemon.config import Config
from orlop.daemon.entry_points import EntryPoint, entry_points
from orlop.errors import AlreadyExists, FailedPrecondition, NotFound, OrlopError

log = logging.getLogger(__name__)

GROUP = "orlop.plugins"

Callback = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Found:
    """A registration and who offers it: `package` is for messages."""

    registration: Registration
    package: str


def discover() -> list[Found]:
    """What installed packages offer under the entry-point group `orlop.plugins`.

    An entry point that cannot be imported is found as a plugin `io.containerd.internal.v1.<its name>-import` that
    fails with the reason, so that introspection shows it.
    """
    found: list[Found] = []
    for point in sorted(entry_points(GROUP), key=_built_in_first):
        found += [Found(registration, point.package) for registration in _registrations(point)]
    return found


def _built_in_first(point: EntryPoint) -> tuple[bool, str]:
    return not point.value.startswith("orlop."), point.name


def _registrations(point: EntryPoint) -> Sequence[Registration]:
    try:
        loaded = point.load()
        registrations = (loaded,) if isinstance(loaded, Registration) else tuple(loaded)
        for registration in registrations:
            if not isinstance(registration, Registration):
                raise TypeError(
                    f"{point.value} of package {point.package} has {registration!r}, which is no Registration"
                )
    except Exception as error:
        log.warning("cannot import plugins of %s", point.value, exc_info=error)
        return (_broken(point.name, error),)
    return registrations


def _broken(name: str, error: Exception) -> Registration:
    async def fail(_context: object) -> None:
        raise error

    return Registration(PluginType.INTERNAL, f"{name}-import", fail)


def order(found: Iterable[Found]) -> list[Registration]:
    """Registrations so that each comes after all it requires; otherwise as they were found.

    Raises AlreadyExists if two claim one URI, FailedPrecondition if some require each other in a circle.
    """
    by_uri: dict[str, Found] = {}
    for one in found:
        other = by_uri.setdefault(one.registration.uri, one)
        if other is not one:
            raise AlreadyExists.verbatim(
                f"plugin {one.registration.uri} is claimed by two packages: {other.package} and {one.package}"
            )
    registrations = [one.registration for one in by_uri.values()]
    placed: dict[str, Registration] = {}
    path: list[str] = []

    def place(registration: Registration) -> None:
        if registration.uri in placed:
            return
        if registration.uri in path:
            circle = [*path[path.index(registration.uri) :], registration.uri]
            raise FailedPrecondition.verbatim(f"plugins require each other in a circle: {' -> '.join(circle)}")
        path.append(registration.uri)
        for required in registration.requires:
            for other in registrations:
                if other is not registration and _is_meant(other, required):
                    place(other)
        path.pop()
        placed[registration.uri] = registration

    for registration in sorted(registrations, key=lambda one: "*" in one.requires):
        place(registration)
    return list(placed.values())


def _is_meant(registration: Registration, required: str) -> bool:
    if required == "*":
        return "*" not in registration.requires
    return registration.type == required


@dataclass(slots=True)
class Context:
    """What one plugin is given at start; see `core.plugin.InitContext`."""

    graph: Graph
    registration: Registration
    daemon: DaemonInfo
    config: Any
    meta: PluginMeta = field(default_factory=PluginMeta)
    closing: list[Callback] = field(default_factory=list)
    ready: list[Callback] = field(default_factory=list)

    root: Path = field(init=False)
    state: Path = field(init=False)

    def __post_init__(self) -> None:
        self.root = self.daemon.root / self.registration.uri
        self.state = self.daemon.state / self.registration.uri

    def get(self, type: str) -> Any:
        instances = list(self.get_all(type).values())
        if len(instances) > 1:
            raise FailedPrecondition.verbatim(
                f"multiple plugins registered for {type}: {', '.join(self.get_all(type))}"
            )
        if not instances:
            raise self.graph.absence(type)
        return instances[0]

    def get_by_id(self, type: str, id: str) -> Any:
        instances = self.get_all(type)
        if id not in instances:
            raise self.graph.absence(type, id)
        return instances[id]

    def get_all(self, type: str) -> dict[str, Any]:
        return self.graph.instances(type)

    def plugins(self) -> Sequence[PluginStatus]:
        return self.graph.statuses

    def make_root(self, mode: int = 0o700) -> Path:
        return _make(self.root, mode)

    def make_state(self, mode: int = 0o700) -> Path:
        return _make(self.state, mode)


class Graph:
    """The plugins of one daemon, started."""

    def __init__(self, config: Config, daemon: DaemonInfo) -> None:
        self._config = config
        self._daemon = daemon
        self.statuses: list[PluginStatus] = []
        """Every plugin whose start was tried, in load order."""
        self._closing: list[tuple[str, Callback]] = []
        self._ready: list[tuple[str, Callback]] = []

    async def start(self, found: Iterable[Found]) -> None:
        """Starts all but the disabled. Raises FailedPrecondition if a required one fails or is not there.

        What was started before a failure is left for `close`.
        """
        disabled = set(self._config.disabled_plugins)
        required = set(self._config.required_plugins)
        for registration in order(one for one in found if one.registration.uri not in disabled):
            status = await self._start_one(registration)
            if registration.uri in required:
                if status.error is not None:
                    raise FailedPrecondition.verbatim(f"load required plugin {registration.uri}: {status.error}")
                required.discard(registration.uri)
        if required:
            raise FailedPrecondition.verbatim(f"required plugin {sorted(required)} not included".replace("'", ""))

    async def run_ready(self) -> None:
        """Tells plugins that the sockets listen. Raises what one of them raises, led by the plugin's name."""
        for uri, callback in self._ready:
            try:
                await callback()
            except OrlopError as error:
                raise error.within(f"plugin {uri}") from None

    async def close(self) -> None:
        """Closes plugins in reverse order of starting; a failure is logged and the next one closed."""
        while self._closing:
            uri, callback = self._closing.pop()
            try:
                await callback()
            except Exception:
                log.exception("failed to close plugin", extra={"fields": {"id": uri}})

    def instances(self, type: str) -> dict[str, Any]:
        return {
            status.registration.id: status.instance
            for status in self.statuses
            if status.registration.type == type and status.error is None
        }

    def absence(self, type: str, id: str | None = None) -> NotFound:
        """Why there is no plugin of `type` (and `id`)."""
        name = type if id is None else f"{type}.{id}"
        for status in self.statuses:
            if status.registration.type == type and id in (None, status.registration.id) and status.error is not None:
                reason = describe(status.error).removesuffix(": not found")
                return NotFound(f"plugin {name} did not start: {reason}")
        return NotFound(f"no plugins registered for {name}" if id is None else f"plugin {name}")

    async def _start_one(self, registration: Registration) -> PluginStatus:
        about = {"id": registration.uri, "type": registration.type}
        log.info("loading plugin", extra={"fields": about})
        status = PluginStatus(registration, PluginMeta())
        started = clock.monotonic()
        context: Context | None = None
        try:
            if registration.config is not None:
                status.config = self._config.section(registration.uri, registration.config)
            context = Context(self, registration, self._daemon, status.config, status.meta)
            status.instance = await registration.init(context)
        except SkipPlugin as error:
            status.error = error
            log.info("skip loading plugin", extra={"fields": {**about, "error": describe(error)}})
        except Exception as error:
            status.error = error
            known = isinstance(error, OrlopError | OSError | ImportError)
            log.warning(
                "failed to load plugin",
                exc_info=None if known else error,
                extra={"fields": {**about, "error": describe(error)}},
            )
        if context is not None:
            self._closing += [(registration.uri, callback) for callback in context.closing]
            if status.error is None:
                self._ready += [(registration.uri, callback) for callback in context.ready]
        log.debug("loaded plugin", extra={"fields": {**about, "seconds": f"{clock.monotonic() - started:.3f}"}})
        self.statuses.append(status)
        return status


def describe(error: BaseException) -> str:
    """`error` as introspection shows it: clients tell a skipped plugin by the words `skip plugin`."""
    if isinstance(error, SkipPlugin):
        return f"skip plugin: {error}" if str(error) else "skip plugin"
    return str(error) or type(error).__name__


def _make(path: Path, mode: int) -> Path:
    """Makes the directory with exactly `mode`, whatever the umask; one that is there with wider rights is narrowed."""
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(mode)
    return path
