"""What a killed daemon was unpacking goes at the next start, and nothing of a client's."""

from __future__ import annotations

from pathlib import Path

from orlop.core.event import Silent
from orlop.core.lease import Resource
from orlop.core.scope import Scope
from orlop.core.snapshot import EXTRACTING
from orlop.metadata.database import Database
from orlop.metadata.extractions import remove_unfinished
from orlop.metadata.leases import Leases
from orlop.metadata.schema import MIGRATIONS
from orlop.metadata.snapshots import NamespacedSnapshots
from orlop.snapshots.native import NativeSnapshotter

MARKED = {EXTRACTING: "true"}


async def test_only_what_the_daemon_was_filling_goes(tmp_path: Path) -> None:
    db = Database(tmp_path / "meta.db", MIGRATIONS, sync=False, reserve_size=0)
    driver = NativeSnapshotter(tmp_path / "native")
    snapshots, leases = NamespacedSnapshots(db, {"native": driver}, Silent()), Leases(db)
    leased = Scope("ns", (await leases.create(Scope("ns"), "client")).id)
    await snapshots.prepare(leased, "native", "extract-1-ab sha256:a", "", MARKED)
    await snapshots.prepare(leased, "native", "extract-2-ab sha256:b")  # a client's, with its lease alive
    await snapshots.prepare(Scope("other"), "native", "extract-3-ab sha256:a", "", MARKED)
    await snapshots.prepare(leased, "native", "container", "", MARKED)
    await snapshots.prepare(leased, "native", "extract-4-ab sha256:c", "", MARKED)
    await snapshots.commit(leased, "native", "sha256:c", "extract-4-ab sha256:c", {})

    assert await remove_unfinished(db) == 2
    assert await remove_unfinished(db) == 0
    left = {info.name for info in await snapshots.list(leased, "native")}
    assert left == {"extract-2-ab sha256:b", "container", "sha256:c"}
    assert await snapshots.list(Scope("other"), "native") == []
    listed = await leases.resources(leased, "client")
    assert Resource("snapshots/native", "extract-1-ab sha256:a") not in listed
    assert Resource("snapshots/native", "extract-2-ab sha256:b") in listed
    await snapshots.cleanup("native")
    assert len(await driver.walk()) == 3
    await driver.close()
    db.close()
