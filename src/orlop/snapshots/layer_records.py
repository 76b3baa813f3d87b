"""The records of kept layers: which there are, what each was made of, and which snapshots have them."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import apsw

from orlop.core.layer import Traits
from orlop.core.snapshot import Kind
from orlop.errors import FailedPrecondition
from orlop.snapshots.storage import Files, Records

_COLUMNS = "id, diff_id, size, disk, damaged, whiteouts"
_RESERVED_AT_ONCE = 64
_CHAINS_IN_USE = """
    WITH RECURSIVE used (id) AS (
        SELECT id FROM snapshots WHERE kind != ? UNION
        SELECT s.parent FROM snapshots AS s JOIN used ON s.id = used.id WHERE s.parent IS NOT NULL)
    SELECT s.id, s.layer FROM snapshots AS s JOIN used ON used.id = s.id WHERE s.layer IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Layer:
    """A kept layer: its tar has `size` bytes, tar and index take `disk` bytes of blocks. `damaged`: found not to be
    what `diff_id` says. `whiteouts`: its index may show markers of what it takes away."""

    id: int
    diff_id: str
    size: int
    disk: int
    damaged: bool = False
    whiteouts: bool = False


class LayerRecords:
    """Layers in the database of `records`."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._reserved: deque[int] = deque()

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[apsw.Connection]:
        """As `Records.transaction`."""
        with self._records.transaction(durable=durable) as connection:
            yield connection

    def get(self, id: int) -> Layer | None:
        return self._one("id = ?", id)

    def by_diff_id(self, diff_id: str) -> Layer | None:
        return self._one("diff_id = ?", diff_id)

    def by_source(self, source: str) -> Layer | None:
        return self._one("id = (SELECT layer FROM layer_sources WHERE source = ?)", source)

    def reserve(self) -> int:
        """An id that no layer has had or will be given. A daemon that ends loses some that it has not given."""
        with self.transaction(durable=False) as connection:
            if not self._reserved:
                # The table counts them by itself, but only for rows that are there.
                connection.execute("INSERT INTO layers (diff_id, size, disk) VALUES ('first', 0, 0)")
                first = connection.last_insert_rowid()
                ids = range(first, first + _RESERVED_AT_ONCE)
                connection.execute("INSERT INTO layers (id, diff_id, size, disk) VALUES (?, 'last', 0, 0)", (ids[-1],))
                connection.execute("DELETE FROM layers WHERE id IN (?, ?)", (first, ids[-1]))
                self._reserved.extend(ids)
            return self._reserved.popleft()

    def add(self, id: int, diff_id: str, size: int, disk: int, traits: Traits) -> Layer:
        """`id` was reserved for it."""
        with self.transaction() as connection:
            columns = (id, diff_id, size, disk, int(traits.implied), int(traits.whiteouts))
            connection.execute(
                "INSERT INTO layers (id, diff_id, size, disk, implied, whiteouts) VALUES (?, ?, ?, ?, ?, ?)", columns
            )
            return Layer(id, diff_id, size, disk, whiteouts=traits.whiteouts)

    def describe(self, layer: Layer, traits: Traits) -> None:
        """What the index of `layer` has in it."""
        with self.transaction() as connection:
            connection.execute(
                "UPDATE layers SET implied = ?, whiteouts = ? WHERE id = ?",
                (int(traits.implied), int(traits.whiteouts), layer.id),
            )

    def mend(self, layer: Layer, disk: int) -> None:
        """The files of `layer` are new and whole."""
        with self.transaction() as connection:
            connection.execute("UPDATE layers SET disk = ?, damaged = 0 WHERE id = ?", (disk, layer.id))

    def mark_damaged(self, layer: Layer) -> None:
        with self.transaction() as connection:
            connection.execute("UPDATE layers SET damaged = 1 WHERE id = ?", (layer.id,))

    def snapshot(self, id: int) -> Files | None:
        """The files of the snapshot `id` if it is active."""
        with self._records.reading() as connection:
            row = connection.execute(
                "SELECT layer FROM snapshots WHERE id = ? AND kind = ?", (id, int(Kind.ACTIVE))
            ).fetchone()
            return None if row is None else Files(id, row[0])

    def note(self, snapshot: int, reason: str) -> None:
        """Why the layer of the active `snapshot` is not kept."""
        with self.transaction() as connection:
            connection.execute("UPDATE snapshots SET unpacked = ? WHERE id = ?", (reason, snapshot))

    def key(self, id: int) -> str | None:
        with self._records.reading() as connection:
            row = connection.execute("SELECT key FROM snapshots WHERE id = ?", (id,)).fetchone()
            return None if row is None else str(row[0])

    def attach(self, snapshot: int, layer: Layer, source: str) -> None:
        """The active `snapshot`, which had none, has `layer`. Raises FailedPrecondition if it is not so any more."""
        with self.transaction() as connection:
            connection.execute(
                "UPDATE snapshots SET layer = ?, unpacked = '' WHERE id = ? AND kind = ? AND layer IS NULL",
                (layer.id, snapshot, int(Kind.ACTIVE)),
            )
            if not connection.changes():
                raise FailedPrecondition(
                    "the snapshot was committed, removed or filled while a layer was applied to it"
                )
            if source:
                connection.execute("INSERT OR REPLACE INTO layer_sources VALUES (?, ?)", (source, layer.id))

    def remember(self, diff_id: str, source: str) -> None:
        """The layer with this diff id, if there is one, was made of `source`. A crash may forget it: it saves work."""
        with self.transaction(durable=False) as connection:
            connection.execute(
                "INSERT OR REPLACE INTO layer_sources SELECT ?, id FROM layers WHERE diff_id = ?", (source, diff_id)
            )

    def all(self) -> list[Layer]:
        with self._records.reading() as connection:
            return [_layer(row) for row in connection.execute(f"SELECT {_COLUMNS} FROM layers ORDER BY id")]  # noqa: S608

    def in_use(self) -> dict[int, int]:
        """The layer of each snapshot that is, or is below, an active one or a view; those without one are left out."""
        with self._records.reading() as connection:
            rows = connection.execute(_CHAINS_IN_USE, (int(Kind.COMMITTED),))
            return {int(id): int(layer) for id, layer in rows}

    def snapshots(self) -> set[int]:
        """The snapshots that have a layer."""
        with self._records.reading() as connection:
            return {int(row[0]) for row in connection.execute("SELECT id FROM snapshots WHERE layer IS NOT NULL")}

    def drop_unused(self, expected: Container[int] = ()) -> list[int]:
        """Forgets the layers that no snapshot has and that are not `expected` to be, and returns them."""
        with self.transaction() as connection:
            unused = "id NOT IN (SELECT layer FROM snapshots WHERE layer IS NOT NULL)"
            found = [int(row[0]) for row in connection.execute(f"SELECT id FROM layers WHERE {unused}")]  # noqa: S608
            gone = [id for id in found if id not in expected]
            connection.executemany("DELETE FROM layers WHERE id = ?", [(id,) for id in gone])
            return gone

    def is_counted_at(self, files: Files) -> bool:
        """Whether a layer's disk counts for this one of its snapshots: the oldest."""
        with self._records.reading() as connection:
            row = connection.execute("SELECT min(id) FROM snapshots WHERE layer = ?", (files.layer,)).fetchone()
            return row is not None and row[0] == files.id

    def _one(self, condition: str, value: int | str) -> Layer | None:
        with self._records.reading() as connection:
            row = connection.execute(f"SELECT {_COLUMNS} FROM layers WHERE {condition}", (value,)).fetchone()  # noqa: S608
            return None if row is None else _layer(row)


def _layer(row: apsw.SQLiteValues) -> Layer:
    id, diff_id, size, disk, damaged, whiteouts = row
    return Layer(int(id), str(diff_id), int(size), int(disk), bool(damaged), bool(whiteouts))  # type: ignore[arg-type]
