"""Overlay snapshots whose labels map ids: what is asked of whoever mounts them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orlop.errors import Unknown
from orlop.snapshots.overlayfs import OverlaySnapshotter

pytestmark = pytest.mark.root

LABELS = {"containerd.io/snapshot/uidmapping": "0:1000:10,10:5000:5", "containerd.io/snapshot/gidmapping": "0:2000:10"}
MAPPED = ("uidmap=0:1000:10,10:5000:5", "gidmap=0:2000:10")


async def layered(driver: OverlaySnapshotter) -> None:
    await driver.prepare("one")
    await driver.commit("layer", "one")


async def test_mappings_are_the_first_options(tmp_path: Path) -> None:
    driver = OverlaySnapshotter(tmp_path / "snapshots", remap_ids=True)
    await layered(driver)
    (active,) = await driver.prepare("active", "layer", LABELS)
    assert (active.type, active.options[:2]) == ("overlay", MAPPED)
    assert active.options[2].startswith("workdir=")
    (view,) = await driver.view("view", "layer", LABELS)
    assert (view.type, view.options) == ("bind", (*MAPPED, "ro", "rbind"))
    (alone,) = await driver.prepare("alone", "", LABELS)
    assert alone.options == (*MAPPED, "rw", "rbind")
    assert await driver.mounts("active") == [active]
    # what is mounted with mapped ids belongs on disk to the container's root, an upper directory to the host's user
    assert os.stat(alone.source).st_uid == 0
    assert os.stat(active.options[3].partition("=")[2])[4:6] == (1000, 2000)
    await driver.close()


async def test_without_mapped_mounts_labels_only_change_the_owner(tmp_path: Path) -> None:
    driver = OverlaySnapshotter(tmp_path / "snapshots")
    await layered(driver)
    (active,) = await driver.prepare("active", "layer", LABELS)
    assert not [option for option in active.options if "map=" in option]
    (alone,) = await driver.prepare("alone", "", LABELS)
    assert os.stat(alone.source)[4:6] == (1000, 2000)
    for bad in ("1:0:1", "0:1", "0:1:x", ""):
        with pytest.raises(Unknown):
            await driver.prepare("bad", "layer", LABELS | {"containerd.io/snapshot/uidmapping": bad})
    await driver.close()
