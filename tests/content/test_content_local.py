"""The local content store: ingests, commits, crashes and full disks."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop import faults
from orlop.content.local import LocalStore
from orlop.content.writer import LocalWriter
from orlop.core import digest as digests
from orlop.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unknown,
)


@contextmanager
def opened(root: Path) -> Iterator[LocalStore]:
    store = LocalStore(root)
    try:
        yield store
    finally:
        store.close()


async def put(store: LocalStore, data: bytes, ref: str = "ref") -> str:
    writer = await store.open_writer(ref)
    await writer.write(data)
    return (await writer.commit()).digest


async def whole(store: LocalStore, digest: str) -> bytes:
    reader = await store.open_reader(digest)
    try:
        return await reader.read(0, reader.size)
    finally:
        await reader.close()


async def test_commit_makes_a_read_only_blob_and_leaves_no_ingest(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        digest = await put(store, b"cargo")
        assert digest == digests.of(b"cargo")
        assert await whole(store, digest) == b"cargo"
        path = tmp_path / "blobs/sha256" / digest.partition(":")[2]
        assert path.stat().st_mode & 0o777 == 0o444
        assert path.parent.stat().st_mode & 0o777 == 0o755
        assert list((tmp_path / "ingest").iterdir()) == []
        assert [info.digest async for info in store.walk()] == [digest]


async def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        with opened(tmp_path) as store:
            await put(store, b"x")
    finally:
        os.umask(umask)
    for path in (tmp_path / "blobs", tmp_path / "ingest", tmp_path / "blobs/sha256"):
        assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
async def test_the_expected_digest_names_the_algorithm(tmp_path: Path, algorithm: str) -> None:
    expected = digests.of(b"cargo", algorithm)
    with opened(tmp_path) as store:
        early = await store.open_writer("early", expected=expected)
        await early.write(b"cargo")
        assert early.digest() == expected
        await early.close()
        await store.abort("early")
        late = await store.open_writer("late")
        await late.write(b"cargo")
        assert (await late.commit(5, expected)).digest == expected
        assert await store.verify(expected)


async def test_commit_refuses_a_blob_with_another_digest(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        writer = await store.open_writer("ref")
        await writer.write(b"cargo")
        wrong = digests.of(b"other")
        with pytest.raises(FailedPrecondition) as error:
            await writer.commit(0, wrong)
        found = digests.of(b"cargo")
        assert str(error.value) == f"unexpected commit digest {found}, expected {wrong}: failed precondition"
        assert (await store.status("ref")).offset == 5
        again = await store.open_writer("ref")
        await again.commit(5, found)


async def test_commit_refuses_a_blob_of_another_size(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        writer = await store.open_writer("ref")
        await writer.write(b"cargo")
        with pytest.raises(FailedPrecondition, match="unexpected commit size 5, expected 6"):
            await writer.commit(6)


async def test_a_second_commit_of_a_blob_is_told_and_its_ingest_goes(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        digest = await put(store, b"cargo")
        with pytest.raises(AlreadyExists, match=f"content {digest}: already exists"):
            await put(store, b"cargo", "other")
        assert await store.statuses() == []
        with pytest.raises(AlreadyExists):
            await store.open_writer("third", expected=digest)


async def test_a_ref_has_one_writer_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        writer = await store.open_writer("ns/1/ref")
        with pytest.raises(Unavailable, match=r"ref ns/1/ref locked for \S+ \(since .* UTC\): unavailable"):
            await store.open_writer("ns/1/ref")
        await writer.close()
        await (await store.open_writer("ns/1/ref")).close()


async def test_an_ingest_goes_on_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        writer = await store.open_writer("ref", 10)
        await writer.write(b"car")
        await writer.close()
    with opened(tmp_path) as store:
        status = await store.status("ref")
        assert (status.offset, status.total) == (3, 10)
        writer = await store.open_writer("ref", 10)
        assert writer.digest() == digests.of(b"car")
        assert await writer.write(b"go") == 5
        assert (await writer.commit()).digest == digests.of(b"cargo")


async def test_another_total_starts_the_ingest_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        writer = await store.open_writer("ref", 10)
        await writer.write(b"car")
        await writer.close()
        writer = await store.open_writer("ref", 11)
        status = await writer.status()
        assert (status.offset, status.total) == (0, 11)
        await writer.write(b"x")
        assert (await writer.commit()).digest == digests.of(b"x")


async def test_an_aborted_ingest_cannot_be_committed_by_who_has_it_open(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        writer = await store.open_writer("ref")
        await writer.write(b"x" * 100_000)
        await store.abort("ref")
        with pytest.raises(NotFound):
            await store.status("ref")
        with pytest.raises(Unknown):
            await writer.commit()
        assert [info async for info in store.walk()] == []
        await (await store.open_writer("ref")).close()


async def test_a_cancelled_holder_leaves_the_ref_free(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        opened_writer = asyncio.Event()

        async def hold() -> None:
            writer = await store.open_writer("ref")
            opened_writer.set()
            try:
                while True:
                    await writer.write(b"x" * 100_000)
            finally:
                await writer.close()

        task = asyncio.ensure_future(hold())
        await opened_writer.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        writer = await store.open_writer("ref")
        assert (await writer.status()).offset % 100_000 == 0
        await writer.close()


async def test_a_closed_writer_refuses_to_write_and_commit(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        writer = await store.open_writer("ref")
        await writer.close()
        await writer.close()
        with pytest.raises(FailedPrecondition):
            await writer.write(b"x")
        with pytest.raises(FailedPrecondition, match="cannot commit on closed writer"):
            await writer.commit()


@pytest.mark.parametrize("name", ["../../etc/passwd", "sha256:../../x", "sha256:" + "A" * 64, "md5:" + "a" * 32, ""])
async def test_what_is_no_digest_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    with opened(tmp_path) as store:
        for call in (store.info, store.delete, store.open_reader):
            with pytest.raises(InvalidArgument):
                await call(name)


@pytest.mark.parametrize("ref", ["../../escape", "a\0b", "a\nb", "x" * 4096])
async def test_any_ref_is_kept_as_it_is(tmp_path: Path, ref: str) -> None:
    with opened(tmp_path) as store:
        await (await store.open_writer(ref)).close()
        assert [status.ref for status in await store.statuses()] == [ref]
        [directory] = (tmp_path / "ingest").iterdir()
        assert directory.name == hashlib.sha256(ref.encode()).hexdigest()


async def test_a_blob_stays_readable_while_it_is_deleted(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        digest = await put(store, b"cargo")
        reader = await store.open_reader(digest)
        await store.delete(digest)
        assert await reader.read(1, 100) == b"argo"
        await reader.close()
        with pytest.raises(FailedPrecondition):
            await reader.read(0, 1)
        with pytest.raises(NotFound, match=f"content {digest}: not found"):
            await store.open_reader(digest)


async def test_a_symbolic_link_in_place_of_a_blob_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with opened(tmp_path) as store:
        digest = await put(store, b"cargo")
        path = tmp_path / "blobs/sha256" / digest.partition(":")[2]
        path.unlink()
        path.symlink_to(secret)
        with pytest.raises(Unknown):
            await store.open_reader(digest)


async def test_verify_finds_a_flipped_bit(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        digest = await put(store, b"cargo")
        path = tmp_path / "blobs/sha256" / digest.partition(":")[2]
        path.chmod(0o644)
        path.write_bytes(b"Cargo")
        assert not await store.verify(digest)


async def test_sixteen_writers_work_at_once(tmp_path: Path) -> None:
    contents = [bytes([number]) * (300_000 + number) for number in range(16)]

    async def write(store: LocalStore, number: int) -> None:
        writer = await store.open_writer(f"ref-{number}")
        data = contents[number]
        for start in range(0, len(data), 50_000):
            await writer.write(data[start : start + 50_000])
        await writer.commit(len(data), digests.of(data))

    with opened(tmp_path) as store:
        async with asyncio.TaskGroup() as group:
            for number in range(16):
                group.create_task(write(store, number))
        assert {info.digest async for info in store.walk()} == {digests.of(data) for data in contents}


@pytest.mark.parametrize(
    ("name", "kind"), [("ENOSPC", ResourceExhausted), ("EDQUOT", ResourceExhausted), ("EIO", DataLoss)]
)
async def test_a_write_that_fails_leaves_the_ingest_as_it_was(tmp_path: Path, name: str, kind: type) -> None:
    with opened(tmp_path) as store:
        writer = await store.open_writer("ref")
        await writer.write(b"car")
        faults.arm("content.write.written", f"1*error({name})->off")
        try:
            with pytest.raises(kind, match="/data: "):
                await writer.write(b"lost")
        finally:
            faults.disarm()
        assert (await writer.status()).offset == (await store.status("ref")).offset == 3
        await writer.write(b"go")
        assert (await writer.commit()).digest == digests.of(b"cargo")


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


async def fill(writer: LocalWriter) -> None:
    for _ in range(100):
        await writer.write(b"y" * 100_000)


@pytest.mark.root
async def test_a_full_disk_is_named_with_what_is_free_and_deleting_still_works(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    with small_disk(root):
        with opened(root) as store:
            digest = await put(store, b"x" * 200_000)
            writer = await store.open_writer("ref")
            with pytest.raises(ResourceExhausted, match=r"/data: no space left on device \(\d+ bytes free\)"):
                await fill(writer)
            status = await writer.status()
            assert (await store.status("ref")).offset == status.offset
            assert writer.digest() == digests.of(b"y" * status.offset)
            await store.delete(digest)
            await writer.write(b"y" * 100_000)
            assert (await writer.commit()).size == status.offset + 100_000


_CRASH = """
import asyncio, sys
from pathlib import Path
from orlop.content.local import LocalStore

async def main():
    data = b"cargo" * int(sys.argv[2])
    store = LocalStore(Path(sys.argv[1]))
    writer = await store.open_writer("ref", len(data))
    await writer.write(data[:3])
    await writer.write(data[3:])
    await writer.commit(len(data))

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "point",
    [
        "content.ingest.directory",
        "content.ingest.described",
        "content.ingest.created",
        "content.write.written",
        "content.commit.synced",
        "content.commit.readonly",
        "content.commit.renamed",
        "content.commit.durable",
        "content.commit.done",
    ],
)
async def test_a_writer_killed_anywhere_leaves_the_ingest_or_the_blob(tmp_path: Path, point: str) -> None:
    assert await run_and_die(tmp_path, point, times=250_000)
    data = b"cargo" * 250_000
    digest = digests.of(data)
    with opened(tmp_path) as store:
        blobs = [info.digest async for info in store.walk()]
        assert blobs in ([], [digest])
        writer = await store.open_writer("ref", len(data))
        offset = (await writer.status()).offset
        assert writer.digest() == digests.of(data[:offset])
        await writer.write(data[offset:])
        if blobs:
            with pytest.raises(AlreadyExists):
                await writer.commit(len(data), digest)
        else:
            await writer.commit(len(data), digest)
        assert await whole(store, digest) == data
        assert list((tmp_path / "ingest").iterdir()) == []


async def run_and_die(root: Path, point: str, *, times: int) -> bool:
    environment = {**os.environ, "ORLOP_FAULTS": f"{point}=kill"}
    arguments = ("-c", _CRASH, str(root), str(times))
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environment)
    return await process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(("times", "survivors"), [(1, []), (250_000, ["ref"])])
async def test_what_a_killed_writer_had_is_kept_where_it_was_much(
    tmp_path: Path, times: int, survivors: list[str]
) -> None:
    assert await run_and_die(tmp_path, "content.commit.synced", times=times)
    with opened(tmp_path) as store:
        assert [status.ref for status in await store.statuses()] == survivors
        assert len(list((tmp_path / "ingest").iterdir())) == len(survivors)


async def test_an_open_ingest_is_told_of_before_and_after_it_is_closed(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        writer = await store.open_writer("ref", 5)
        await writer.write(b"car")
        assert [(s.ref, s.offset, s.total) for s in await store.statuses()] == [("ref", 3, 5)]
        before = await store.status("ref")
        await writer.close()
        assert await store.status("ref") == before
        assert await store.statuses() == [before]


async def test_an_ingest_that_was_aborted_while_it_was_open_stays_away(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        writer = await store.open_writer("ref")
        await writer.write(b"cargo")
        await store.abort("ref")
        with pytest.raises(NotFound):
            await store.status("ref")
        assert await store.statuses() == []
        await writer.close()
        assert list((tmp_path / "ingest").iterdir()) == []


_refs = st.sampled_from(["a", "b/../c", "ü"])
_steps = st.one_of(
    st.tuples(st.just("write"), _refs, st.binary(max_size=40)),
    st.tuples(st.just("big"), _refs, st.integers(0, 3)),
    st.tuples(st.sampled_from(["truncate", "reopen", "restart", "commit", "abort"]), _refs, st.none()),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_steps, max_size=25))
def test_any_program_of_writes_and_commits_does_what_the_model_does(program: list[tuple[str, str, object]]) -> None:
    with TemporaryDirectory() as directory:
        asyncio.run(_follow(Path(directory), program))


async def _follow(root: Path, program: list[tuple[str, str, object]]) -> None:
    ingests: dict[str, bytes] = {}
    blobs: set[bytes] = set()
    store = LocalStore(root)
    for verb, ref, argument in program:
        if verb == "restart":
            store.close()
            store = LocalStore(root)
            continue
        if verb == "abort":
            if ref in ingests:
                del ingests[ref]
                await store.abort(ref)
            else:
                with pytest.raises(NotFound):
                    await store.abort(ref)
            continue
        writer = await store.open_writer(ref)
        data = ingests.setdefault(ref, b"")
        assert writer.digest() == digests.of(data)
        if verb in ("write", "big"):
            piece = argument if isinstance(argument, bytes) else b"z" * 40_000 * int(str(argument))
            assert await writer.write(piece) == len(data) + len(piece)
            ingests[ref] = data + piece
        elif verb == "truncate":
            await writer.truncate(0)
            ingests[ref] = b""
        elif verb == "commit":
            del ingests[ref]
            if data in blobs:
                with pytest.raises(AlreadyExists):
                    await writer.commit()
            else:
                blobs.add(data)
                await writer.commit(len(data), digests.of(data))
        await writer.close()
    assert {status.ref: status.offset for status in await store.statuses()} == {
        ref: len(data) for ref, data in ingests.items()
    }
    assert {await whole(store, info.digest) async for info in store.walk()} == blobs
    store.close()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 120_000), st.integers(0, 130_000), st.integers(0, 130_000))
def test_a_reader_gives_the_bytes_of_any_range(length: int, offset: int, size: int) -> None:
    async def run(root: Path) -> None:
        data = (hashlib.sha256(b"seed").digest() * 3751)[:length]
        with opened(root) as store:
            digest = await put(store, data)
            reader = await store.open_reader(digest)
            assert await reader.read(offset, size) == data[offset : offset + size]
            await reader.close()

    with TemporaryDirectory() as directory:
        asyncio.run(run(Path(directory)))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        await put(store, b"first")
        before = descriptors()
        for number in range(20):
            await whole(store, await put(store, b"x" * number * 10_000 + b"y"))
            writer = await store.open_writer(f"left-{number}")
            with pytest.raises(FailedPrecondition):
                await writer.commit(7)
        assert descriptors() == before
