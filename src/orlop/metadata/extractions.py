"""Snapshots that a daemon was filling when it was killed: nobody will go on with them.

Clients fill snapshots of the same kind of name, under leases of theirs, and may go on after a restart. So the daemon's
own have a label as long as they are filled, and only those are removed.
"""

from __future__ import annotations

import logging

import apsw

from orlop.core.snapshot import EXTRACTING, EXTRACTION
from orlop.metadata import records
from orlop.metadata.database import Database

_log = logging.getLogger(__name__)


async def remove_unfinished(db: Database) -> int:
    """Removes what a former life of the daemon has left; returns how many there were. Before anything is unpacked:
    afterwards such snapshots are somebody's. Their files go with the first collection."""
    found = db.read(_unfinished)
    if not found:
        return 0

    def change(connection: apsw.Connection) -> None:
        for row, namespace, snapshotter, name in found:
            connection.execute("DELETE FROM snapshots WHERE row = ?", (row,))
            connection.execute(
                "DELETE FROM lease_resources WHERE namespace = ? AND type = ? AND id = ?",
                (namespace, f"snapshots/{snapshotter}", name),
            )

    await db.write(change, removes=len(found), frees=True)
    _log.info("removed %d snapshots that were not finished when the daemon ended", len(found))
    return len(found)


def _unfinished(connection: apsw.Connection) -> list[tuple[int, str, str, str]]:
    rows = connection.execute(
        "SELECT row, namespace, snapshotter, name, labels FROM snapshots WHERE name GLOB ?", (f"{EXTRACTION}*",)
    )
    return [
        (row, namespace, snapshotter, name)
        for row, namespace, snapshotter, name, labels in rows
        if EXTRACTING in records.load_labels(labels)
    ]
