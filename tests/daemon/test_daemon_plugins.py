from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orlop.core.plugin import DaemonInfo, InitContext, PluginType, Registration, SkipPlugin
from orlop.daemon.config import Config
from orlop.daemon.plugins import Found, Graph, order
from orlop.errors import AlreadyExists, FailedPrecondition, NotFound, OrlopError


class Settings(msgspec.Struct):
    size: int = 3


def plugin(uri: str, *requires: str, init: Any = None, config: Any = None) -> Found:
    type, _, id = uri.rpartition(".")

    async def instance(_context: InitContext) -> str:
        return uri

    return Found(Registration(type, id, init or instance, requires, config), f"package-of-{id}")


def graph(tmp_path: Path, **config: Any) -> Graph:
    information = DaemonInfo(tmp_path, tmp_path, "", "", "1", "r", "info", {})
    return Graph(Config(**config), information)


def needing(type: str) -> Any:
    async def init(context: InitContext) -> Any:
        return context.get(type)

    return init


async def failing(_context: InitContext) -> None:
    raise OSError("no such device")


async def skipping(_context: InitContext) -> None:
    raise SkipPlugin("not on this host")


def uris(registrations: list[Registration]) -> list[str]:
    return [registration.uri for registration in registrations]


def test_each_comes_after_what_it_requires_and_star_comes_last() -> None:
    found = [plugin("z.all", "*"), plugin("a.one", "c"), plugin("c.two", "b"), plugin("b.three"), plugin("b.four")]
    assert uris(order(found)) == ["b.three", "b.four", "c.two", "a.one", "z.all"]


def test_a_circle_is_told_by_its_members() -> None:
    with pytest.raises(FailedPrecondition, match=r"circle: a\.x -> b\.y -> a\.x"):
        order([plugin("a.x", "b"), plugin("b.y", "a")])


def test_a_plugin_may_require_others_of_its_own_type() -> None:
    assert uris(order([plugin("a.x"), plugin("a.y", "b"), plugin("b.z")])) == ["a.x", "b.z", "a.y"]


def test_two_packages_that_claim_one_uri_are_both_named() -> None:
    other = Found(plugin("a.x").registration, "other")
    with pytest.raises(AlreadyExists, match=r"a\.x is claimed by two packages: package-of-x and other"):
        order([plugin("a.x"), other])


async def test_one_that_fails_takes_only_its_dependents_along(tmp_path: Path) -> None:
    started = graph(tmp_path)
    await started.start(
        [plugin("a.bad", init=failing), plugin("b.dependent", "a", init=needing("a")), plugin("c.good")]
    )
    errors = {status.registration.uri: str(status.error or "") for status in started.statuses}
    assert errors == {
        "a.bad": "no such device",
        "b.dependent": "plugin a did not start: no such device: not found",
        "c.good": "",
    }
    assert started.instances("c") == {"good": "c.good"}


async def test_a_skipped_one_is_told_from_a_failed_one(tmp_path: Path) -> None:
    started = graph(tmp_path)
    await started.start([plugin("a.x", init=skipping)])
    assert started.statuses[0].skipped
    with pytest.raises(NotFound, match="skip plugin: not on this host"):
        raise started.absence("a")


async def test_disabled_ones_are_not_started(tmp_path: Path) -> None:
    started = graph(tmp_path, disabled_plugins=["a.x"])
    await started.start([plugin("a.x"), plugin("a.y")])
    assert [status.registration.id for status in started.statuses] == ["y"]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ([plugin("a.x", init=failing)], "load required plugin a.x: no such device"),
        ([plugin("a.y")], "required plugin [a.x] not included"),
    ],
)
async def test_a_required_one_that_fails_or_is_missing_stops_the_start(
    tmp_path: Path, found: list[Found], text: str
) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await graph(tmp_path, required_plugins=["a.x"]).start(found)
    assert str(caught.value) == text


async def test_configuration_is_typed_and_a_wrong_value_fails_that_plugin_alone(tmp_path: Path) -> None:
    seen: list[Any] = []

    async def init(context: InitContext) -> None:
        seen.append(context.config)

    started = graph(tmp_path, plugins={"a.x": {"size": 7}, "a.y": {"size": "big"}})
    await started.start([plugin(f"a.{id}", init=init, config=Settings) for id in "xyz"])
    assert seen == [Settings(7), Settings(3)]
    assert "plugins.'a.y'.size: expected int, got str" in str(started.statuses[1].error)


async def test_plugins_are_closed_in_reverse_even_when_one_fails_to(tmp_path: Path) -> None:
    closed: list[str] = []

    def closing(name: str) -> Any:
        async def close() -> None:
            closed.append(name)
            if name == "b":
                raise OSError("stuck")

        async def init(context: InitContext) -> str:
            context.closing.append(close)
            return name

        return init

    started = graph(tmp_path)
    await started.start([plugin(f"t.{name}", init=closing(name)) for name in "abc"])
    await started.close()
    await started.close()
    assert closed == ["c", "b", "a"]


async def test_what_a_failed_plugin_opened_is_closed_too(tmp_path: Path) -> None:
    closed: list[int] = []

    async def close() -> None:
        closed.append(1)

    async def init(context: InitContext) -> None:
        context.closing.append(close)
        raise OSError

    started = graph(tmp_path)
    await started.start([plugin("a.x", init=init)])
    await started.close()
    assert closed == [1]


async def test_ready_callbacks_run_when_asked_and_name_the_plugin_that_fails(tmp_path: Path) -> None:
    async def init(context: InitContext) -> None:
        async def ready() -> None:
            raise FailedPrecondition("no network")

        context.ready.append(ready)

    started = graph(tmp_path)
    await started.start([plugin("a.x", init=init)])
    with pytest.raises(OrlopError, match=r"plugin a\.x: no network"):
        await started.run_ready()


async def test_a_plugin_gets_directories_with_exactly_the_mode_it_asks_for(tmp_path: Path) -> None:
    made: list[Path] = []

    async def init(context: InitContext) -> None:
        made.append(context.make_root(0o711))
        made.append(context.make_root(0o711))

    await graph(tmp_path).start([plugin("a.x", init=init)])
    assert made == [tmp_path / "a.x"] * 2
    assert stat.S_IMODE(made[0].stat().st_mode) == 0o711


async def test_one_of_several_must_be_asked_for_by_id(tmp_path: Path) -> None:
    async def init(context: InitContext) -> Any:
        assert context.get_by_id("a", "y") == "a.y"
        with pytest.raises(NotFound, match=r"plugin a\.z: not found"):
            context.get_by_id("a", "z")
        return context.get("a")

    started = graph(tmp_path)
    await started.start([plugin("a.x"), plugin("a.y"), plugin("b.z", "a", init=init)])
    assert str(started.statuses[2].error) == "multiple plugins registered for a: x, y"


async def test_a_package_that_cannot_be_imported_is_a_failed_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orlop.daemon import plugins
    from orlop.daemon.entry_points import EntryPoint

    broken = EntryPoint("broken", "no_such_module:REGISTRATIONS", "a-package")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [broken])
    started = graph(tmp_path)
    await started.start(plugins.discover())
    (status,) = started.statuses
    assert (status.registration.type, status.registration.id) == (PluginType.INTERNAL, "broken-import")
    assert "no_such_module" in str(status.error)


def test_the_plugins_that_are_installed_can_be_ordered_with_the_api_last() -> None:
    from orlop.daemon.server import registrations

    ordered = uris(order(registrations()))
    assert ordered[-1] == "io.containerd.server.v1.grpc"
    assert ordered.index("io.containerd.event.v1.exchange") < ordered.index("io.containerd.grpc.v1.events")
