"""Collections, against a plain model of the rules, with writers in between."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import apsw
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orlop.core.event import Silent
from orlop.core.scope import Scope
from orlop.metadata.database import Database
from orlop.metadata.gc.collector import BATCH, Collector
from orlop.metadata.leases import Leases
from orlop.metadata.schema import MIGRATIONS

NOW = 1_000_000_000_000_000_000
PAST, FUTURE = "2001-01-01T00:00:00Z", "2030-01-01T00:00:00Z"


class Files:
    """Stands for both stores of files, and counts what is asked of them."""

    snapshotters: Iterable[str] = ("overlayfs",)

    def __init__(self) -> None:
        self.cleanups: list[str] = []

    async def cleanup(self, snapshotter: str = "content") -> None:
        self.cleanups.append(snapshotter)


class Interrupted(Database):
    """A database in which writers come in between every read and what follows it."""

    between: list[Callable[[apsw.Connection], Any]] = []  # noqa: RUF012

    def read(self, query: Callable[[apsw.Connection], Any]) -> Any:
        result = super().read(query)
        changes, self.between = self.between, []
        for change in changes:
            self.write_now(change)
        return result


# One operation of a random program: a verb and the names it acts on. Few names, so that they meet.
NAMES = st.sampled_from("abcd")
LABELS = st.dictionaries(
    st.sampled_from(
        [
            "containerd.io/gc.root",
            "containerd.io/gc.ref.content.0",
            "containerd.io/gc.ref.content/x",
            "containerd.io/gc.ref.contentX",
            "containerd.io/gc.ref.snapshot.overlayfs",
            "containerd.io/gc.ref.image.i",
            "containerd.io/gc.bref.container",
            "containerd.io/gc.bref.content.x",
            "containerd.io/gc.bref.image",
            "containerd.io/gc.bref.snapshot.overlayfs/1",
        ]
    ),
    NAMES,
    max_size=2,
)
EXPIRY = st.sampled_from([None, PAST, FUTURE])
OPERATIONS = st.one_of(
    st.tuples(st.just("image"), NAMES, NAMES, LABELS, EXPIRY),
    st.tuples(st.just("blob"), NAMES, LABELS),
    st.tuples(st.just("snapshot"), NAMES, st.sampled_from(["", "a", "b", "c", "d"]), LABELS),
    st.tuples(st.just("container"), NAMES, NAMES, LABELS),
    st.tuples(st.just("sandbox"), NAMES, LABELS),
    st.tuples(st.just("ingest"), NAMES, st.sampled_from(["", "a", "b"]), st.sampled_from([None, NOW - 1, NOW + 1])),
    st.tuples(st.just("lease"), NAMES, st.booleans(), EXPIRY),
    st.tuples(st.just("hold"), NAMES, st.sampled_from(["content", "images", "ingests", "snapshots/overlayfs"]), NAMES),
    st.tuples(
        st.just("delete"),
        st.sampled_from(["images", "blobs", "containers", "sandboxes", "leases"]),
        NAMES,
    ),
)
KEY = {"images": "name", "blobs": "digest", "snapshots": "name", "ingests": "ref"}


def apply(operation: tuple[Any, ...]) -> Callable[[apsw.Connection], None]:
    """The change to the records that `operation` makes: create, or replace the labels of what is there."""

    def change(connection: apsw.Connection) -> None:
        verb, *rest = operation
        run = connection.execute
        if verb == "image":
            name, digest, labels, expiry = rest
            labels = labels | ({"containerd.io/gc.expire": expiry} if expiry else {})
            run(
                "INSERT INTO images VALUES (NULL, 'ns', ?, ?, '', ?, 1, '{}', 0, 0) ON CONFLICT DO UPDATE SET "
                "labels = excluded.labels, digest = excluded.digest",
                (name, json.dumps(labels), digest),
            )
        elif verb == "blob":
            run(
                "INSERT INTO blobs VALUES (NULL, 'ns', ?, 1, ?, 0, 0) "
                "ON CONFLICT DO UPDATE SET labels = excluded.labels",
                (rest[0], json.dumps(rest[1])),
            )
        elif verb == "snapshot":
            name, parent, labels = rest
            exists = run("SELECT 1 FROM snapshots WHERE name = ?", (parent,)).fetchone()
            run(
                "INSERT INTO snapshots VALUES (NULL, 'ns', 'overlayfs', ?, ?, hex(randomblob(8)), ?, 0, 0) "
                "ON CONFLICT (namespace, snapshotter, name) DO UPDATE SET labels = excluded.labels",
                (name, parent if exists and parent != name else "", json.dumps(labels)),
            )
        elif verb == "container":
            name, key, labels = rest
            run(
                "INSERT INTO containers VALUES (NULL, 'ns', ?, ?, '', 'r', NULL, NULL, NULL, NULL, 'overlayfs', ?, '', "
                "'{}', 0, 0) ON CONFLICT DO UPDATE SET labels = excluded.labels",
                (name, json.dumps(labels), key),
            )
        elif verb == "sandbox":
            run(
                "INSERT INTO sandboxes VALUES (NULL, 'ns', ?, 'r', NULL, NULL, NULL, NULL, ?, '{}', '', 0, 0) "
                "ON CONFLICT DO UPDATE SET labels = excluded.labels",
                (rest[0], json.dumps(rest[1])),
            )
        elif verb == "ingest":
            run("INSERT INTO ingests VALUES (NULL, 'ns', ?, ?, ?) ON CONFLICT DO NOTHING", tuple(rest))
        elif verb == "lease":
            name, flat, expiry = rest
            labels = ({"containerd.io/gc.flat": "1"} if flat else {}) | (
                {"containerd.io/gc.expire": expiry} if expiry else {}
            )
            run("INSERT INTO leases VALUES (NULL, 'ns', ?, ?, 0) ON CONFLICT DO NOTHING", (name, json.dumps(labels)))
        elif verb == "hold":
            lease, kind, name = rest
            if run("SELECT 1 FROM leases WHERE id = ?", (lease,)).fetchone():
                run(
                    "INSERT INTO lease_resources VALUES (NULL, 'ns', ?, ?, ?) ON CONFLICT DO UPDATE SET id = id",
                    (lease, kind, name),
                )
        elif verb == "delete":
            table, name = rest
            run(f"DELETE FROM {table} WHERE {KEY.get(table, 'id')} = ?", (name,))
            if table == "leases":
                run("DELETE FROM lease_resources WHERE lease = ?", (name,))

    return change


def existing(connection: apsw.Connection) -> set[tuple[str, str]]:
    return {
        (table, name)
        for table in ("images", "blobs", "snapshots", "ingests", "leases")
        for (name,) in connection.execute(f"SELECT {KEY.get(table, 'id')} FROM {table}")
    }


def expected(connection: apsw.Connection) -> set[tuple[str, str]]:
    """What is alive, by the rules written the slow way: grow the set of living things until nothing changes.

    A pair's second half may be ("flat", name): held by a flat lease only.
    """
    objects: dict[tuple[str, str], dict[str, str]] = {}
    targets: dict[tuple[str, str], list[tuple[str, str]]] = {}
    alive: set[tuple[str, str]] = set()
    flat: set[tuple[str, str]] = set()
    for name, labels, digest in connection.execute("SELECT name, labels, digest FROM images"):
        objects["images", name] = json.loads(labels)
        targets["images", name] = [("blobs", digest)]
        if objects["images", name].get("containerd.io/gc.expire") != PAST:
            alive.add(("images", name))
    for name, labels in connection.execute("SELECT digest, labels FROM blobs"):
        objects["blobs", name] = json.loads(labels)
    for name, parent, labels in connection.execute("SELECT name, parent, labels FROM snapshots"):
        objects["snapshots", name] = json.loads(labels)
        targets["snapshots", name] = [("snapshots", parent)] if parent else []
    for name, key, labels in connection.execute("SELECT id, snapshot_key, labels FROM containers"):
        objects["containers", name] = json.loads(labels)
        targets["containers", name] = [("snapshots", key)]
        alive.add(("containers", name))
    for name, labels in connection.execute("SELECT id, labels FROM sandboxes"):
        objects["sandboxes", name] = json.loads(labels)
        alive.add(("sandboxes", name))
    for name, blob, expires in connection.execute("SELECT ref, expected, expires_at FROM ingests"):
        targets["ingests", name] = [("blobs", blob)] if blob else []
        if expires is not None and expires >= NOW:
            alive.add(("ingests", name))
    for name, text in connection.execute("SELECT id, labels FROM leases"):
        labels = json.loads(text)
        if labels.get("containerd.io/gc.expire") == PAST:
            continue
        alive.add(("leases", name))
        table = {"content": "blobs", "images": "images", "ingests": "ingests", "snapshots/overlayfs": "snapshots"}
        for kind, id in connection.execute("SELECT type, id FROM lease_resources WHERE lease = ?", (name,)):
            (flat if "containerd.io/gc.flat" in labels else alive).add((table[kind], id))
    for key, labels in objects.items():
        if key[0] in ("blobs", "snapshots") and labels.get("containerd.io/gc.root"):
            alive.add(key)
    kinds = {"content": "blobs", "image": "images", "snapshot": "snapshots", "container": "containers"}
    while True:
        before = len(alive), len(flat)
        for key in list(alive):
            alive.update(targets.get(key, ()))
            for label, value in objects.get(key, {}).items():
                word = label.removeprefix("containerd.io/gc.ref.")
                kind = next((k for k in ("content", "image", "snapshot") if word.startswith(k)), None)
                if word != label and kind and word[len(kind) : len(kind) + 1] in ("", ".", "/"):
                    alive.add((kinds[kind], value))
        for key, labels in objects.items():
            for label, value in labels.items():
                word = label.removeprefix("containerd.io/gc.bref.")
                if word != label and (kinds[word.replace("/", ".").split(".")[0]], value) in alive:
                    alive.add(key)
        for key in list(flat):
            if key[0] != "ingests":
                flat.update(targets.get(key, ()))
            else:
                alive.update(targets.get(key, ()))
        if (len(alive), len(flat)) == before:
            return (alive | flat) & existing(connection)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(OPERATIONS, max_size=25), st.lists(OPERATIONS, max_size=8))
def test_what_is_reachable_survives_any_writer_and_the_rest_goes(
    program: list[tuple[Any, ...]], meanwhile: list[tuple[Any, ...]]
) -> None:
    asyncio.run(collect_and_compare(program, meanwhile))


async def collect_and_compare(program: list[tuple[Any, ...]], meanwhile: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        db = Interrupted(Path(folder) / "meta.db", MIGRATIONS, sync=False, reserve_size=0)
        try:
            for operation in program:
                db.write_now(apply(operation))
            collector = Collector(db, Silent(), Files(), Files(), now=lambda: NOW)
            db.between = [apply(operation) for operation in meanwhile]
            await collector.collect()
            assert Database.read(db, expected) <= Database.read(db, existing)
            # Nothing has been written since, so the next run leaves exactly what lives.
            await collector.collect()
            assert Database.read(db, existing) == Database.read(db, expected)
        finally:
            db.close()


async def test_many_batches_go_in_one_run_and_files_are_freed_after(tmp_path: Path) -> None:
    db = Database(tmp_path / "meta.db", MIGRATIONS, sync=False, reserve_size=0)
    for number in range(BATCH * 2 + 10):
        db.write_now(apply(("blob", f"sha256:{number}", {})))
    snapshots, content = Files(), Files()
    done = await Collector(db, Silent(), snapshots, content, now=lambda: NOW).collect()
    assert done.removed == BATCH * 2 + 10
    assert snapshots.cleanups == ["overlayfs"]
    assert content.cleanups == ["content"]
    db.close()


class Told:
    def __init__(self) -> None:
        self.topics: list[tuple[str, str]] = []

    def publish(self, namespace: str, topic: str, payload: Message) -> None:
        self.topics.append((namespace, topic))


async def test_images_and_snapshots_that_go_are_told_and_content_is_not(tmp_path: Path) -> None:
    db = Database(tmp_path / "meta.db", MIGRATIONS, sync=False, reserve_size=0)
    for operation in (("image", "a", "d", {}, PAST), ("snapshot", "s", "", {}), ("blob", "d", {})):
        db.write_now(apply(operation))
    told = Told()
    await Collector(db, told, Files(), Files(), now=lambda: NOW).collect()
    assert sorted(told.topics) == [("ns", "/images/delete"), ("ns", "/snapshot/remove")]
    db.close()


async def test_who_follows_leases_is_told_of_those_that_have_expired(tmp_path: Path) -> None:
    db = Database(tmp_path / "meta.db", MIGRATIONS, sync=False, reserve_size=0)
    leases = Leases(db)
    await leases.create(Scope("ns"), "over", {"containerd.io/gc.expire": PAST})
    await leases.create(Scope("ns"), "runs", {"containerd.io/gc.expire": FUTURE})
    ended: list[tuple[str, str]] = []
    await Collector(db, Silent(), Files(), Files(), on_lease=[lambda *of: ended.append(of)], now=lambda: NOW).collect()
    assert ended == [("ns", "over")]
    db.close()


async def test_a_snapshotter_that_cannot_free_its_files_does_not_keep_the_rest_from_it(tmp_path: Path) -> None:
    class Refusing(Files):
        async def cleanup(self, snapshotter: str = "") -> None:
            raise OSError("busy")

    db = Database(tmp_path / "meta.db", MIGRATIONS, sync=False, reserve_size=0)
    content = Files()
    await Collector(db, Silent(), Refusing(), content, now=lambda: NOW).collect()
    assert content.cleanups == ["content"]
    db.close()
