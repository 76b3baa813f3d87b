"""The mount manager: activations as records, their mounts below `<state>/t/<row>`.

Order of durable steps: the record comes first and marks the activation as being made, the mounts follow, then the
record is completed. Deactivating goes the other way round for the caller: the name is free at once, and whatever is
mounted without a record is taken off. So a crash leaves either no more than a directory without a record, or a record
that was never completed, and both go at the next start.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw
import msgspec

from orlop import faults
from orlop.core import clock
from orlop.core.activation import Activation, ActiveMount, MountHandler
from orlop.core.labels import stored
from orlop.core.mount import Mount
from orlop.core.scope import Scope
from orlop.errors import AlreadyExists, DataLoss, NotFound, OrlopError, Unknown
from orlop.metadata import records
from orlop.metadata.database import Database
from orlop.mounts import mountinfo
from orlop.mounts.activate import Plan, perform, plan, release

_actives = msgspec.json.Decoder(tuple[ActiveMount, ...])
_systems = msgspec.json.Decoder(tuple[Mount, ...])
_encoder = msgspec.json.Encoder()
_log = logging.getLogger(__name__)


class Activations:
    """Implements `core.activation.MountManager`; `roots` are where mounts may have directories and images made."""

    def __init__(self, db: Database, state: Path, handlers: Mapping[str, MountHandler], roots: Sequence[str]) -> None:
        self._db = db
        self._handlers = handlers
        self._roots = tuple(roots)
        self._targets = state / "t"
        self._targets.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._targets.chmod(0o700)

    async def activate(
        self,
        scope: Scope,
        name: str,
        mounts: Sequence[Mount],
        *,
        labels: Mapping[str, str] | None = None,
        temporary: bool = False,
        allowed: Sequence[str] = (),
    ) -> Activation:
        """As the protocol says. A call that is given up leaves nothing."""
        planned = plan(mounts, self._handlers, temporary=temporary, allowed=allowed)
        if not name:
            raise Unknown("bucket name required")
        row = await self._reserve(scope, name, stored(labels))
        doing = asyncio.ensure_future(self._do(row, planned))
        try:
            active, system = await asyncio.shield(doing)
        except BaseException:
            # Mounting in a thread cannot be interrupted: the record goes once it has ended.
            await asyncio.shield(self._undo(row, doing))
            raise
        return Activation(name, active, system, stored(labels))

    async def _reserve(self, scope: Scope, name: str, labels: Mapping[str, str]) -> int:
        def change(connection: apsw.Connection) -> int:
            records.ensure_namespace(connection, scope.namespace)
            try:
                connection.execute(
                    "INSERT INTO mounts (namespace, name, lease, labels, created_at) VALUES (?, ?, ?, ?, ?)",
                    (scope.namespace, name, scope.lease, records.dump_labels(labels), clock.now()),
                )
            except apsw.ConstraintError:
                raise AlreadyExists(f'mount "{name}"') from None
            return connection.last_insert_rowid()

        return await self._db.write(change)

    async def _do(self, row: int, planned: Plan) -> tuple[tuple[ActiveMount, ...], tuple[Mount, ...]]:
        faults.point("mounts.activate.recorded")
        directory = self._directory(row)
        os.mkdir(directory, 0o700)
        done = await asyncio.to_thread(perform, planned, directory, self._handlers, self._roots)
        faults.point("mounts.activate.mounted")
        columns = (_encoder.encode(done[0]).decode(), _encoder.encode(done[1]).decode(), row)

        def change(connection: apsw.Connection) -> None:
            connection.execute("UPDATE mounts SET active = ?, system = ? WHERE row = ?", columns)

        await self._db.write(change)
        return done

    async def _undo(self, row: int, doing: asyncio.Future[Any]) -> None:
        await asyncio.wait([doing])
        await self._db.write(lambda connection: _forget(connection, row), frees=True)
        await self._release(row)

    async def deactivate(self, scope: Scope, name: str) -> None:
        def find(connection: apsw.Connection) -> int:
            found: tuple[int] | None = connection.execute(
                "SELECT row FROM mounts WHERE namespace = ? AND name = ? AND active IS NOT NULL",
                (scope.namespace, name),
            ).fetchone()
            if found is None:
                raise NotFound(f'missing mount "{name}" bucket')
            return found[0]

        def change(connection: apsw.Connection) -> int:
            row = find(connection)
            _forget(connection, row)
            return row

        self._db.look(find)  # the usual case, no such activation, writes nothing
        gone = await self._db.write(change, frees=True)
        faults.point("mounts.deactivate.recorded")
        await asyncio.shield(self._release(gone))

    async def info(self, scope: Scope, name: str) -> Activation:
        found = self._query("namespace = ? AND name = ?", (scope.namespace, name))
        if not found:
            raise NotFound.verbatim(f'mount "{name}" not found')
        return found[0]

    def _query(self, where: str, values: tuple[str, ...]) -> Sequence[Activation]:
        def query(connection: apsw.Connection) -> Sequence[Activation]:
            rows = connection.execute(
                f"SELECT name, active, system, labels FROM mounts WHERE active IS NOT NULL AND {where} ORDER BY name",
                values,
            )
            return tuple(records.each_readable(rows, _load, "mount"))

        return self._db.read(query)

    async def recover(self) -> None:
        """Forgets what was not completed, and what is mounted no more (after a reboot); frees what nobody names."""
        points = {os.fsdecode(entry.point) for entry in await asyncio.to_thread(lambda: list(mountinfo.read()))}

        def change(connection: apsw.Connection) -> None:
            rows: list[Any] = connection.execute("SELECT row, active FROM mounts").fetchall()
            for row, active in rows:
                if not isinstance(active, str) or not _is_in_effect(active, points):
                    _forget(connection, row)

        await self._db.write(change, frees=True)
        await self.cleanup()

    async def cleanup(self) -> None:
        """Takes off what is mounted without a record. What is in use is logged and left for the next time."""
        # Listed before the records are read: a record is always older than its directory.
        names = [name for name in await asyncio.to_thread(os.listdir, self._targets) if name.isdigit()]
        known = self._db.read(lambda connection: {row for (row,) in connection.execute("SELECT row FROM mounts")})
        for name in names:
            if int(name) not in known:
                await self._release(int(name))

    async def _release(self, row: int) -> None:
        try:
            await asyncio.to_thread(release, self._directory(row), self._handlers)
        except (OSError, OrlopError) as error:
            _log.warning("mounts below %s stay for now: %s", self._directory(row), error)

    def _directory(self, row: int) -> str:
        return str(self._targets / str(row))

    async def list(self, scope: Scope) -> list[Activation]:
        return [*self._query("namespace = ?", (scope.namespace,))]


def _forget(connection: apsw.Connection, row: int) -> None:
    connection.execute("DELETE FROM mounts WHERE row = ?", (row,))


def _load(row: tuple[Any, ...]) -> Activation:
    name, active, system, labels = row
    try:
        return Activation(name, _actives.decode(active), _systems.decode(system), records.load_labels(labels))
    except msgspec.MsgspecError as error:
        raise DataLoss(f"mount {name!r}: {error}") from error


def _is_in_effect(active: str, points: set[str]) -> bool:
    try:
        mounts = _actives.decode(active)
    except msgspec.MsgspecError:
        return False
    return all(mount.point in points or os.path.islink(mount.point) for mount in mounts)
