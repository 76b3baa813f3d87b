"""Content by namespace: records, leases, sharing, events and the cleanup of files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from orlop import faults
from orlop.content.local import LocalStore
from orlop.core import clock
from orlop.core import digest as digests
from orlop.core.content import ContentInfo, write_whole
from orlop.core.scope import Scope
from orlop.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unknown,
)
from orlop.metadata.content import NamespacedContent
from orlop.metadata.database import Database
from orlop.metadata.schema import MIGRATIONS

ONE, TWO = Scope("one"), Scope("two")
LEASED = Scope("one", "lease")
CARGO = b"cargo"
DIGEST = digests.of(CARGO)


class Events:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, Message]] = []

    def publish(self, namespace: str, topic: str, payload: Message) -> None:
        self.seen.append((namespace, topic, payload))


class House:
    """A store with its parts."""

    def __init__(self, root: Path, policy: str) -> None:
        self.root = root
        self.db = Database(root / "meta.db", MIGRATIONS, sync=False)
        self.backend = LocalStore(root)
        self.events = Events()
        self.content = NamespacedContent(self.db, self.backend, self.events, policy)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.db.read(lambda connection: connection.execute(query).fetchall())

    async def run(self, statement: str) -> None:
        await self.db.write(lambda connection: connection.execute(statement).fetchall())

    async def make_lease(self, name: str = "lease") -> None:
        await self.run(f"INSERT INTO leases (namespace, id, labels, created_at) VALUES ('one', '{name}', '{{}}', 0)")

    def leased(self) -> list[tuple[Any, ...]]:
        return self.rows("SELECT type, id FROM lease_resources ORDER BY type, id")

    async def stored(self) -> set[str]:
        return {info.digest async for info in self.backend.walk()}


@asynccontextmanager
async def house(root: Path, policy: str = "shared") -> AsyncIterator[House]:
    it = House(root, policy)
    try:
        yield it
    finally:
        it.backend.close()
        it.db.close()


async def put(content: NamespacedContent, scope: Scope, data: bytes, labels: dict[str, str] | None = None) -> str:
    return (await write_whole(content, scope, f"put-{digests.of(data)}", data, labels=labels)).digest


async def test_commit_makes_a_record_and_says_so(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        writer = await at.content.open_writer(ONE, "ref")
        await writer.write(CARGO)
        info = await writer.commit(5, DIGEST, {"a": "b", "empty": ""})
        assert await at.content.info(ONE, DIGEST) == info
        assert (info.size, info.labels, info.created_at) == (5, {"a": "b"}, info.updated_at)
        assert at.rows("SELECT * FROM ingests") == []
        [(namespace, topic, event)] = at.events.seen
        assert (namespace, topic) == ("one", "/content/create")
        assert str(event) == f'digest: "{DIGEST}"\nsize: 5\n'
        with pytest.raises(NotFound, match=f"content digest {DIGEST}: not found"):
            await at.content.info(TWO, DIGEST)


async def test_a_blob_of_the_namespace_joins_the_lease_of_who_would_write_it_again(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        await at.make_lease()
        await put(at.content, ONE, CARGO, {"first": "1"})
        with pytest.raises(AlreadyExists, match=f"content {DIGEST}: already exists"):
            await at.content.open_writer(LEASED, "ref", expected=DIGEST)
        assert at.leased() == [("content", DIGEST)]
        assert at.rows("SELECT * FROM ingests") == []
        await at.run("DELETE FROM lease_resources")
        writer = await at.content.open_writer(LEASED, "ref")
        await writer.write(CARGO)
        assert at.leased() == [("ingests", "ref")]
        with pytest.raises(AlreadyExists):
            await writer.commit(labels={"second": "2"})
        assert at.leased() == [("content", DIGEST)]
        assert (await at.content.info(ONE, DIGEST)).labels == {"first": "1"}


async def test_a_lease_that_does_not_exist_refuses_the_writer(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        with pytest.raises(NotFound, match=r"^lease does not exist: not found$"):
            await at.content.open_writer(LEASED, "ref")
        assert at.rows("SELECT * FROM ingests") == []


async def test_an_ingest_without_a_lease_lives_a_day_from_its_last_opening(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        await at.make_lease()
        before = clock.now()
        await (await at.content.open_writer(ONE, "ref")).close()
        [(first,)] = at.rows("SELECT expires_at FROM ingests")
        assert before <= first - 24 * 3600 * 10**9 <= clock.now()
        await (await at.content.open_writer(ONE, "ref")).close()
        [(second,)] = at.rows("SELECT expires_at FROM ingests")
        assert second > first
        await (await at.content.open_writer(LEASED, "ref")).close()
        assert at.rows("SELECT expires_at FROM ingests") == [(None,)]


async def test_a_shared_blob_opens_complete_and_needs_no_bytes(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        await put(at.content, ONE, CARGO, {"mine": "1"})
        writer = await at.content.open_writer(TWO, "ref", expected=DIGEST)
        status = await writer.status()
        assert (status.ref, status.offset, status.total, writer.digest()) == ("ref", 5, 5, DIGEST)
        with pytest.raises(FailedPrecondition, match=r'^"ref" failed size validation: 5 != 6: failed precondition$'):
            await writer.commit(6)
        assert (await writer.commit(5, DIGEST, {"theirs": "2"})).labels == {"theirs": "2"}
        assert (await at.content.info(ONE, DIGEST)).labels == {"mine": "1"}


async def test_what_is_written_to_a_complete_ingest_comes_behind_a_copy(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        await put(at.content, ONE, CARGO)
        writer = await at.content.open_writer(TWO, "ref", expected=DIGEST)
        assert await writer.write(b"!") == 6
        assert (await writer.commit()).digest == digests.of(CARGO + b"!")
        writer = await at.content.open_writer(TWO, "ref", expected=DIGEST)
        await writer.truncate(0)
        await writer.write(b"new")
        assert (await writer.commit()).digest == digests.of(b"new")


async def test_another_total_is_no_shared_blob(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        await put(at.content, ONE, CARGO)
        writer = await at.content.open_writer(TWO, "ref", 6, DIGEST)
        assert (await writer.status()).offset == 0
        await writer.close()


async def test_isolated_namespaces_must_bring_the_bytes_unless_the_other_is_shareable(tmp_path: Path) -> None:
    async with house(tmp_path, "isolated") as at:
        await put(at.content, ONE, CARGO)
        writer = await at.content.open_writer(TWO, "ref", expected=DIGEST)
        assert (await writer.status()).offset == 0
        await writer.write(CARGO)
        await writer.commit(5, DIGEST)
        shareable = '{"containerd.io/namespace.shareable":"true"}'
        await at.run(f"UPDATE namespaces SET labels = '{shareable}' WHERE name = 'one'")
        writer = await at.content.open_writer(Scope("three"), "ref", expected=DIGEST)
        assert (await writer.status()).offset == 5
        await writer.close()


def test_another_policy_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="content_sharing_policy 'open'"):
        NamespacedContent(None, None, None, "open")  # type: ignore[arg-type]


async def test_the_same_ref_in_two_namespaces_is_two_ingests(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        first = await at.content.open_writer(ONE, "ref")
        second = await at.content.open_writer(TWO, "ref")
        with pytest.raises(Unavailable, match=r"^ref one/1/ref locked for \S+ \(since .*\): unavailable$"):
            await at.content.open_writer(ONE, "ref")
        await first.write(b"1")
        await second.write(b"22")
        assert [(s.ref, s.offset) for s in await at.content.statuses(ONE)] == [("ref", 1)]
        assert (await at.content.status(TWO, "ref")).offset == 2
        await first.close()
        await second.close()


async def test_labels_that_are_too_long_are_refused_at_commit(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        writer = await at.content.open_writer(ONE, "ref")
        await writer.write(CARGO)
        with pytest.raises(InvalidArgument) as error:
            await writer.commit(labels={"a": "x" * 5000})
        assert str(error.value) == (
            "info.Labels: label key and value length (5001 bytes) greater than maximum size (4096 bytes), "
            "key: a: invalid argument"
        )
        assert (await at.content.status(ONE, "ref")).offset == 5


async def test_update_changes_labels_only(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        await put(at.content, ONE, CARGO, {"a": "1", "b": "2"})
        given = ContentInfo(DIGEST, 99, labels={"a": "x", "c.d/e:f": "3"})
        info = await at.content.update(ONE, given, ["labels.c.d/e:f", "labels.b"])
        assert (info.labels, info.size) == ({"a": "1", "c.d/e:f": "3"}, 5)
        assert info.updated_at > info.created_at
        assert await at.content.info(ONE, DIGEST) == info
        assert (await at.content.update(ONE, given, None)).labels == given.labels
        with pytest.raises(InvalidArgument) as error:
            await at.content.update(ONE, given, ["size"])
        assert str(error.value) == f'cannot update "size" field on content info "{DIGEST}": invalid argument'


async def test_delete_removes_the_record_and_cleanup_the_file_of_the_last(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        await put(at.content, ONE, CARGO)
        await put(at.content, TWO, CARGO)
        at.events.seen.clear()
        await at.content.delete(ONE, DIGEST)
        assert [(namespace, topic) for namespace, topic, _ in at.events.seen] == [("one", "/content/delete")]
        await at.content.cleanup()
        assert await at.stored() == {DIGEST}
        await at.content.delete(TWO, DIGEST)
        await at.content.cleanup()
        assert await at.stored() == set()
        with pytest.raises(NotFound):
            await at.content.delete(TWO, DIGEST)


async def test_cleanup_keeps_what_an_ingest_stands_for(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        await put(at.content, ONE, CARGO)
        writer = await at.content.open_writer(TWO, "ref", expected=DIGEST)
        await at.content.delete(ONE, DIGEST)
        await at.content.cleanup()
        await writer.commit(5, DIGEST)
        reader = await at.content.open_reader(TWO, DIGEST)
        assert await reader.read(0, 9) == CARGO
        await reader.close()


async def test_cleanup_aborts_ingests_that_no_namespace_knows(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        known = await at.content.open_writer(ONE, "known")
        gone = await at.content.open_writer(ONE, "gone")
        await at.run("DELETE FROM ingests WHERE ref = 'gone'")
        await at.content.cleanup()
        assert [status.ref for status in await at.backend.statuses()] == ["one/1/known"]
        with pytest.raises(Unknown):
            await gone.commit()
        await known.commit()


async def test_no_committed_blob_is_lost_to_a_cleanup_at_the_same_time(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        done = asyncio.Event()

        async def write(number: int) -> None:
            for step in range(8):
                data = f"{number % 4}-{step}".encode()
                await put(at.content, Scope(f"ns{number}"), data)
                await at.content.info(Scope(f"ns{number}"), digests.of(data))
                if step % 2 and number % 4:
                    await at.content.delete(Scope(f"ns{number}"), digests.of(data))

        async def sweep() -> None:
            while not done.is_set():
                await at.content.cleanup()

        async with asyncio.TaskGroup() as group:
            sweeper = group.create_task(sweep())
            async with asyncio.TaskGroup() as writers:
                for number in range(16):
                    writers.create_task(write(number))
            done.set()
            await sweeper
        await at.content.cleanup()
        assert {digest for (digest,) in at.rows("SELECT DISTINCT digest FROM blobs")} == await at.stored()


async def test_a_lost_file_drops_the_records_so_that_it_can_come_again(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        await put(at.content, ONE, CARGO)
        await put(at.content, TWO, CARGO)
        await at.backend.delete(DIGEST)
        with pytest.raises(NotFound):
            await at.content.open_reader(ONE, DIGEST)
        assert at.rows("SELECT * FROM blobs") == []
        await put(at.content, ONE, CARGO)
        await at.backend.delete(DIGEST)
        writer = await at.content.open_writer(ONE, "ref", expected=DIGEST)
        await writer.write(CARGO)
        await writer.commit(5, DIGEST)


async def test_a_truncated_file_is_data_loss(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        await put(at.content, ONE, CARGO)
        path = tmp_path / "blobs/sha256" / DIGEST.partition(":")[2]
        path.chmod(0o644)
        path.write_bytes(b"car")
        with pytest.raises(DataLoss, match=f"content {DIGEST}: 3 bytes on disk, 5 were committed"):
            await at.content.open_reader(ONE, DIGEST)


async def test_a_commit_that_failed_before_its_record_can_be_repeated(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        faults.arm("metadata.content.unrecorded", "1*error(EIO)->off")
        try:
            writer = await at.content.open_writer(ONE, "ref")
            await writer.write(CARGO)
            with pytest.raises(OSError, match=r"fault metadata\.content\.unrecorded"):
                await writer.commit(5, DIGEST)
        finally:
            faults.disarm()
        assert await at.stored() == {DIGEST}
        writer = await at.content.open_writer(ONE, "ref", expected=DIGEST)
        await writer.commit(5, DIGEST)
        assert (await at.content.info(ONE, DIGEST)).size == 5


async def test_lists_are_ordered_and_filtered(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        made = sorted([await put(at.content, ONE, bytes([n]), {"n": str(n)} if n else None) for n in range(5)])
        assert [info.digest for info in await at.content.list(ONE)] == made
        assert [info.digest for info in await at.content.list(ONE, [f"digest=={made[2]}"])] == [made[2]]
        assert [info.labels for info in await at.content.list(ONE, ["labels.n==3"])] == [{"n": "3"}]
        assert await at.content.list(ONE, ["size==1"]) == []
        for ref in ("b", "a"):
            await (await at.content.open_writer(ONE, ref)).close()
        assert [status.ref for status in await at.content.statuses(ONE, ["ref==a"])] == ["a"]
        await at.content.abort(ONE, "a")
        with pytest.raises(NotFound, match=r"^reference a: not found$"):
            await at.content.abort(ONE, "a")


async def test_one_spoiled_record_hides_no_other(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        await put(at.content, ONE, CARGO)
        other = await put(at.content, ONE, b"other")
        await at.run(f"UPDATE blobs SET labels = '{{' WHERE digest = '{DIGEST}'")
        assert [info.digest for info in await at.content.list(ONE)] == [other]
        with pytest.raises(DataLoss):
            await at.content.info(ONE, DIGEST)
