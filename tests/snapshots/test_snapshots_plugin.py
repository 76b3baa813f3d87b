"""What the snapshotter plugins announce."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from orlop.core import platform
from orlop.core.plugin import PluginMeta
from orlop.snapshots import idmap, probe
from orlop.snapshots.plugin import REGISTRATIONS

pytestmark = pytest.mark.root


def context(root: Path, config: object) -> SimpleNamespace:
    closing: list[Callable[[], Awaitable[None]]] = []
    ready: list[Callable[[], Awaitable[None]]] = []
    return SimpleNamespace(config=config, meta=PluginMeta(), closing=closing, ready=ready, make_root=lambda mode: root)


@pytest.mark.parametrize("registration", REGISTRATIONS, ids=lambda registration: registration.id)
async def test_a_plugin_announces_its_root_and_frees_what_a_crash_left(tmp_path: Path, registration) -> None:  # type: ignore[no-untyped-def]
    assert registration.config is not None
    given = context(tmp_path / "own", registration.config())
    (tmp_path / "own/snapshots/7/fs").mkdir(parents=True)
    driver = await registration.init(given)
    assert given.meta.exports["root"] == str(tmp_path / "own")
    assert given.meta.platforms == [platform.host()]
    for hook in given.ready:
        await hook()
    assert list((tmp_path / "own/snapshots").iterdir()) == []
    assert await driver.prepare("k")
    for hook in given.closing:
        await hook()


async def test_a_configured_root_is_used_instead_and_overlayfs_can_rebase(tmp_path: Path) -> None:
    (overlay,) = (registration for registration in REGISTRATIONS if registration.id == "overlayfs")
    assert overlay.config is not None
    given = context(tmp_path / "own", overlay.config(root_path=str(tmp_path / "else")))
    driver = await overlay.init(given)
    assert given.meta.exports["root"] == str(tmp_path / "else")
    assert given.meta.capabilities[-2:] == ["only-remap-ids", "rebase"]
    assert ("remap-ids" in given.meta.capabilities) is (idmap.why_not_mapped(tmp_path) == "")
    await driver.close()


async def test_clients_may_copy_where_the_configuration_says_so(tmp_path: Path) -> None:
    (overlay,) = (registration for registration in REGISTRATIONS if registration.id == "overlayfs")
    assert overlay.config is not None
    given = context(tmp_path, overlay.config(slow_chown=True))
    driver = await overlay.init(given)
    assert "only-remap-ids" not in given.meta.capabilities
    await driver.close()


@pytest.mark.parametrize("setting", ["auto", "directories"])
async def test_introspection_says_which_form_layers_have_and_why(tmp_path: Path, setting: str) -> None:
    (overlay,) = (registration for registration in REGISTRATIONS if registration.id == "overlayfs")
    assert overlay.config is not None
    given = context(tmp_path / "own", overlay.config(layers=setting))
    driver = await overlay.init(given)
    refusal = probe.refusal(tmp_path) if setting == "auto" else "the configuration says so"
    assert given.meta.exports["layers"] == ("directories" if refusal else "indexed")
    assert given.meta.exports.get("layers_why", "") == refusal
    mounts = await driver.prepare("k")
    assert (driver.place(mounts) is None) == bool(refusal)
    if not refusal:
        buffered = probe.direct_refusal(tmp_path)
        assert given.meta.exports["layers_direct"] == ("false" if buffered else "true")
        assert given.meta.exports.get("layers_direct_why", "") == buffered
    await driver.close()


def test_a_trial_of_mapped_ids_that_takes_too_long_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why := idmap.why_not_mapped(tmp_path):
        pytest.skip(f"no id-mapped mounts here: {why}")
    monkeypatch.setenv("ORLOP_FAULTS", "shim.idmap.tried=stop")
    monkeypatch.setattr(idmap, "_PROBE_TIMEOUT", 2.0)
    assert "timed out" in idmap.why_not_mapped(tmp_path)
    assert list(tmp_path.iterdir()) == []
