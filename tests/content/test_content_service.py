"""The Content service as a client sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.api.services.content.v1 import content_pb2 as pb
from orlop.content.local import LocalStore
from orlop.core import digest as digests
from orlop.core.event import Silent
from orlop.core.scope import Scope
from orlop.errors import OrlopError
from orlop.metadata.content import NamespacedContent
from orlop.metadata.database import Database
from orlop.metadata.schema import MIGRATIONS
from orlop.rpc.channel import InProcessChannel, Stub
from orlop.rpc.scope import headers_of
from orlop.rpc.service import Service
from orlop.services.content import ContentService

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["Content"]
STAT, WRITE, COMMIT = pb.WriteAction.STAT, pb.WriteAction.WRITE, pb.WriteAction.COMMIT
CARGO = b"cargo"
DIGEST = digests.of(CARGO)
Request = pb.WriteContentRequest


class Client:
    def __init__(self, channel: InProcessChannel, namespace: str) -> None:
        headers = headers_of(Scope(namespace)) if namespace else {}
        self._stub = Stub(channel, DESCRIPTOR, headers)

    async def call(self, method: str, request: Any) -> Any:
        return await self._stub.call(method, request)

    async def stream(self, method: str, request: Any) -> list[Any]:
        return [message async for message in self._stub.stream(method, request)]

    def duplex(self, requests: AsyncIterator[Request]) -> AsyncIterator[Any]:
        return self._stub.duplex("Write", requests)

    async def write(self, *requests: Request) -> list[Any]:
        async def sent() -> AsyncIterator[Request]:
            for request in requests:
                yield request

        return [response async for response in self.duplex(sent())]

    async def put(self, data: bytes = CARGO, **fields: Any) -> str:
        [response, _] = await self.write(Request(ref="put", action=COMMIT, data=data, **fields))
        return str(response.digest)


@asynccontextmanager
async def served(root: Path) -> AsyncIterator[InProcessChannel]:
    db = Database(root / "meta.db", MIGRATIONS, sync=False)
    backend = LocalStore(root)
    content = NamespacedContent(db, backend, Silent())
    try:
        yield InProcessChannel([Service(DESCRIPTOR, ContentService(content))])
    finally:
        backend.close()
        db.close()


async def refusal(client: Client, *requests: Request) -> tuple[int, str]:
    with pytest.raises(OrlopError) as error:
        await client.write(*requests)
    return error.value.code, str(error.value)


async def test_each_request_has_a_response_and_the_last_comes_twice(tmp_path: Path) -> None:
    async with served(tmp_path) as channel:
        client = Client(channel, "one")
        responses = await client.write(
            Request(ref="ref", action=STAT, total=5),
            Request(action=WRITE, data=b"car"),
            Request(action=WRITE, offset=3, data=b"go"),
            Request(action=COMMIT, offset=5, total=5, expected=DIGEST),
            Request(action=STAT),
        )
        assert [(r.action, r.offset, r.digest) for r in responses] == [
            (STAT, 0, digests.EMPTY_SHA256),
            (WRITE, 3, digests.of(b"car")),
            (WRITE, 5, DIGEST),
            (COMMIT, 5, DIGEST),
            (COMMIT, 5, DIGEST),
        ]
        assert [r.total for r in responses] == [5] * 5
        assert all(r.started_at == responses[0].started_at for r in responses)


async def test_a_stream_that_ends_leaves_the_ingest_to_go_on_with(tmp_path: Path) -> None:
    async with served(tmp_path) as channel:
        client = Client(channel, "one")
        responses = await client.write(Request(ref="ref", action=WRITE, total=9, data=b"car"))
        assert len(responses) == 2
        assert not responses[0].HasField("started_at")
        status = (await client.call("Status", pb.StatusRequest(ref="ref"))).status
        assert (status.ref, status.offset, status.total, status.expected) == ("ref", 3, 9, "")
        [stat, _] = await client.write(Request(ref="ref", action=STAT))
        assert (stat.offset, stat.total, stat.digest) == (3, 0, digests.of(b"car"))
        await client.call("Abort", pb.AbortRequest(ref="ref"))
        assert not (await client.call("ListStatuses", pb.ListStatusesRequest())).statuses


async def test_offset_zero_starts_again(tmp_path: Path) -> None:
    async with served(tmp_path) as channel:
        responses = await Client(channel, "one").write(
            Request(ref="ref", action=WRITE, data=b"wrong"),
            Request(action=WRITE, offset=0, data=b"car"),
            Request(action=COMMIT, offset=3, data=b"go"),
        )
        assert [r.offset for r in responses[:3]] == [5, 3, 5]
        assert responses[-1].digest == DIGEST


async def test_an_unknown_action_is_echoed(tmp_path: Path) -> None:
    async with served(tmp_path) as channel:
        [response, _] = await Client(channel, "one").write(Request(ref="ref", action=7, data=b"x"))  # type: ignore[arg-type]
        assert (response.action, response.offset) == (7, 0)


async def test_refusals_of_write(tmp_path: Path) -> None:
    async with served(tmp_path) as channel:
        client = Client(channel, "one")
        assert await refusal(client, Request(action=STAT)) == (3, "first message must have a reference")
        assert await refusal(client) == (2, "EOF")
        assert await refusal(Client(channel, ""), Request(ref="r")) == (
            9,
            "namespace is required: failed precondition",
        )
        assert await refusal(client, Request(ref="r", action=WRITE, data=b"car"), Request(action=WRITE, offset=2)) == (
            11,
            "write @2 must occur at current offset 3",
        )
        assert await refusal(client, Request(ref="r", action=COMMIT, offset=3, total=4)) == (
            9,
            '"r" failed size validation: 3 != 4: failed precondition',
        )
        assert await refusal(client, Request(ref="r", action=COMMIT, offset=3, expected="sha256:xx")) == (
            9,
            f"unexpected commit digest {digests.of(b'car')}, expected sha256:xx: failed precondition",
        )
        assert (await client.write(Request(ref="r", action=STAT)))[0].offset == 3


async def test_a_blob_that_is_there_is_told_at_opening_at_commit_and_by_name(tmp_path: Path) -> None:
    async with served(tmp_path) as channel:
        client = Client(channel, "one")
        assert await client.put() == DIGEST
        exists = (6, f"content {DIGEST}: already exists")
        assert await refusal(client, Request(ref="r", action=STAT, expected=DIGEST)) == exists
        assert await refusal(client, Request(ref="r", action=COMMIT, data=CARGO)) == exists
        assert await refusal(
            client,
            Request(ref="r", action=WRITE, data=CARGO),
            Request(action=COMMIT, offset=5, expected=DIGEST),
        ) == (6, f"blob with expected digest {DIGEST} exists")
        assert not (await client.call("ListStatuses", pb.ListStatusesRequest())).statuses


async def test_nothing_written_commits_the_empty_blob(tmp_path: Path) -> None:
    async with served(tmp_path) as channel:
        assert await Client(channel, "one").put(b"") == digests.EMPTY_SHA256


async def test_another_stream_finds_the_ref_locked_until_the_first_is_dropped(tmp_path: Path) -> None:
    async with served(tmp_path) as channel:
        client = Client(channel, "one")

        async def endless() -> AsyncIterator[Request]:
            yield Request(ref="ref", action=WRITE, data=b"car")
            await asyncio.Event().wait()

        async with aclosing(client.duplex(endless())) as responses:  # type: ignore[type-var]
            await anext(responses)
            code, text = await refusal(client, Request(ref="ref", action=STAT))
            assert code == 14
            assert text.startswith("ref one/1/ref locked for ")
            assert text.endswith("): unavailable")
        assert (await client.write(Request(ref="ref", action=STAT)))[0].offset == 3


async def test_another_namespace_commits_a_shared_blob_without_bytes(tmp_path: Path) -> None:
    async with served(tmp_path) as channel:
        await Client(channel, "one").put()
        other = Client(channel, "two")
        responses = await other.write(
            Request(ref="r", action=STAT, expected=DIGEST, total=5),
            Request(action=COMMIT, offset=5, total=5, expected=DIGEST, labels={"a": "b"}),
        )
        assert [(r.offset, r.total, r.digest) for r in responses] == [(5, 5, DIGEST)] * 3
        info = (await other.call("Info", pb.InfoRequest(digest=DIGEST))).info
        assert (info.size, dict(info.labels)) == (5, {"a": "b"})
        assert info.created_at == info.updated_at


@pytest.mark.parametrize(
    ("method", "request_", "code", "text"),
    [
        ("Info", pb.InfoRequest(digest="foo"), 3, '"foo" failed validation'),
        ("Info", pb.InfoRequest(digest=DIGEST), 5, f"content digest {DIGEST}: not found"),
        ("Update", pb.UpdateRequest(), 3, '"" failed validation'),
        ("Update", pb.UpdateRequest(info=pb.Info(digest=DIGEST)), 5, f"content digest {DIGEST}: not found"),
        ("Delete", pb.DeleteContentRequest(digest="foo"), 3, "invalid checksum digest format"),
        ("Delete", pb.DeleteContentRequest(digest="sha256:ab"), 3, "invalid checksum digest length"),
        ("Delete", pb.DeleteContentRequest(digest="md5:ab"), 3, "unsupported digest algorithm"),
        ("Delete", pb.DeleteContentRequest(digest=DIGEST), 5, f"content digest {DIGEST}: not found"),
        ("Status", pb.StatusRequest(ref="R"), 5, 'could not get status for ref "R": reference R: not found'),
        ("Abort", pb.AbortRequest(ref="R"), 5, "reference R: not found"),
    ],
)
async def test_refusals_of_other_calls(tmp_path: Path, method: str, request_: Any, code: int, text: str) -> None:
    async with served(tmp_path) as channel:
        with pytest.raises(OrlopError) as error:
            await Client(channel, "one").call(method, request_)
        assert (error.value.code, str(error.value)) == (code, text)


async def test_refusals_of_read(tmp_path: Path) -> None:
    async with served(tmp_path) as channel:
        client = Client(channel, "one")
        await client.put()
        for request, code, text in (
            (pb.ReadContentRequest(digest="foo"), 3, "foo: invalid checksum digest format"),
            (pb.ReadContentRequest(digest=digests.of(b"?")), 5, f"content digest {digests.of(b'?')}: not found"),
            (pb.ReadContentRequest(digest=DIGEST, offset=6), 11, "read past object length 5 bytes"),
        ):
            with pytest.raises(OrlopError) as error:
                await client.stream("Read", request)
            assert (error.value.code, str(error.value)) == (code, text)
        assert await client.stream("Read", pb.ReadContentRequest(digest=DIGEST, offset=5)) == []


@settings(max_examples=15, deadline=None)
@given(st.integers(-5, 2_500_000), st.integers(-5, 3_000_000))
def test_read_gives_the_range_in_messages_that_count_from_its_start(offset: int, size: int) -> None:
    data = bytes(range(256)) * 9_000

    async def run(root: Path) -> None:
        async with served(root) as channel:
            client = Client(channel, "one")
            digest = await client.put(data)
            request = pb.ReadContentRequest(digest=digest, offset=offset, size=size)
            start = max(offset, 0)
            if start > len(data):
                with pytest.raises(OrlopError, match="read past object length"):
                    await client.stream("Read", request)
                return
            messages = await client.stream("Read", request)
            end = len(data) if size <= 0 else start + size
            assert b"".join(message.data for message in messages) == data[start:end]
            position = 0
            for message in messages:
                assert message.offset == position
                assert 0 < len(message.data) <= 1 << 20
                position += len(message.data)

    with TemporaryDirectory() as directory:
        asyncio.run(run(Path(directory)))


async def test_list_comes_in_pages_of_a_hundred(tmp_path: Path) -> None:
    async with served(tmp_path) as channel:
        client = Client(channel, "one")
        assert await client.stream("List", pb.ListContentRequest()) == []
        made = sorted([await client.put(str(number).encode()) for number in range(101)])
        pages: Sequence[Any] = await client.stream("List", pb.ListContentRequest())
        assert [len(page.info) for page in pages] == [100, 1]
        assert [info.digest for page in pages for info in page.info] == made
