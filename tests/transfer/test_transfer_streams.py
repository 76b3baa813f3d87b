"""Streams: who can have them, how they end, and bytes over them within the window that their receiver grants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.api.types.transfer import streaming_pb2
from orlop.core.scope import Scope
from orlop.core.typed import Typed
from orlop.core.wire import common
from orlop.errors import Canceled, InvalidArgument, NotFound, Unknown
from orlop.transfer import bytestream
from orlop.transfer.streams import DEPTH, OpenStreams, Pipe

NS = Scope("ns", "lease")
MESSAGE = Typed("x", b"y")


class End:
    """One end of a pair of pipes."""

    def __init__(self, incoming: Pipe, outgoing: Pipe) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self.sent: list[Typed] = []

    async def send(self, message: Typed) -> None:
        self.sent.append(message)
        await self.outgoing.put(message)

    async def receive(self) -> Typed | None:
        return await self.incoming.get()

    async def close(self) -> None:
        self.outgoing.end()
        self.incoming.drop()


def pair() -> tuple[End, End]:
    one, other = Pipe(), Pipe()
    return End(one, other), End(other, one)


async def _received(end: End, window: int) -> bytes:
    return b"".join([piece async for piece in bytestream.receive(end, window)])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 200_000), max_size=6), st.sampled_from([1000, 65536, bytestream.WINDOW]))
def test_bytes_arrive_as_they_were_sent(sizes: list[int], window: int) -> None:
    async def run() -> None:
        sender_end, receiver_end = pair()
        sender = bytestream.ByteSender(sender_end, patience=0.01)
        pieces = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
        receiving = asyncio.create_task(_received(receiver_end, window))
        for piece in pieces:
            await sender.write(piece)
        await sender.finish()
        assert await receiving == b"".join(pieces)
        sent = [len(common.parsed(one, streaming_pb2.Data()).data) for one in sender_end.sent]
        assert all(size <= bytestream.PIECE for size in sent[:-1])

    asyncio.run(run())


async def test_a_sender_never_exceeds_the_window() -> None:
    sender_end, receiver_end = pair()
    sender = bytestream.ByteSender(sender_end)
    await sender.write(b"x" * 100_000)
    flushing = asyncio.create_task(sender.flush())
    for granted in (10, 50_000):
        await receiver_end.send(common.pack(streaming_pb2.WindowUpdate(update=granted)))
        got = 0
        while got < granted:
            message = await receiver_end.receive()
            assert message is not None
            got += len(common.parsed(message, streaming_pb2.Data()).data)
        assert got == granted
    assert not flushing.done()
    receiver_end.outgoing.end()
    with pytest.raises(Canceled):
        await flushing


async def test_finish_waits_for_a_customary_receiver_to_take_the_last_bytes() -> None:
    """Such a receiver adds 64 KiB whenever it has less than that, after it has handed on what came."""
    for size in (1, 32 << 10, 64 << 10, (64 << 10) + 1, 300_000):
        sender_end, receiver_end = pair()
        sender = bytestream.ByteSender(sender_end, patience=30)
        taken = 0

        async def take(end: End = receiver_end) -> None:
            nonlocal taken
            room = 0
            while True:
                if room < bytestream.CUSTOMARY_WINDOW:
                    await end.send(common.pack(streaming_pb2.WindowUpdate(update=bytestream.CUSTOMARY_WINDOW)))
                    room += bytestream.CUSTOMARY_WINDOW
                message = await end.receive()
                if message is None:
                    return
                data = common.parsed(message, streaming_pb2.Data()).data
                await asyncio.sleep(0.001)  # it is slow
                taken += len(data)
                room -= len(data)

        taking = asyncio.create_task(take())
        await sender.write(b"x" * size)
        await sender.finish()
        assert taken == size
        await taking


async def test_a_receiver_refuses_what_is_no_data() -> None:
    receiver_end, other = pair()
    await other.send(MESSAGE)
    with pytest.raises(InvalidArgument, match=r"expected containerd\.types\.transfer\.Data"):
        await _received(receiver_end, 100)


async def test_a_pipe_holds_its_writer_back_and_gives_what_was_put_after_its_end() -> None:
    pipe = Pipe()
    for _ in range(DEPTH):
        await pipe.put(MESSAGE)
    waiting = asyncio.create_task(pipe.put(MESSAGE))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await pipe.get() == MESSAGE
    await waiting
    pipe.end()
    with pytest.raises(Canceled):
        await pipe.put(MESSAGE)
    assert [await pipe.get() for _ in range(DEPTH + 1)] == [MESSAGE] * DEPTH + [None]


async def test_an_id_is_one_stream_of_a_namespace_until_it_ends() -> None:
    streams = OpenStreams()
    stream = streams.open(NS, "a")
    with pytest.raises(Unknown, match="already exists"):
        streams.open(NS, "a")
    assert streams.get(NS, "a") is stream
    with pytest.raises(NotFound, match='stream "a"'):
        streams.get(Scope("other"), "a")
    streams.open(Scope("other"), "a")
    await stream.close()
    with pytest.raises(NotFound):
        streams.get(NS, "a")
    streams.open(NS, "a")
    await streams.close()
    with pytest.raises(NotFound):
        streams.get(NS, "a")


async def test_a_stream_that_nobody_asks_for_is_dropped() -> None:
    streams = OpenStreams(unclaimed=0.01)
    left, wanted = streams.open(NS, "left"), streams.open(NS, "wanted")
    assert streams.get(NS, "wanted") is wanted
    assert [message async for message in left.outgoing()] == []
    assert streams.get(NS, "wanted") is wanted
    await streams.close()


async def test_a_stream_ends_with_its_lease() -> None:
    streams = OpenStreams()
    held, free = streams.open(NS, "held"), streams.open(Scope("ns"), "free")
    streams.end_lease("other", "lease")
    assert streams.get(NS, "held") is held
    streams.end_lease("ns", "lease")
    assert await held.receive() is None
    with pytest.raises(Canceled):
        await held.send(MESSAGE)
    assert streams.get(NS, "free") is free
    await streams.close()


async def test_what_a_client_sends_is_received_until_it_ends() -> None:
    async def messages() -> AsyncIterator[Typed]:
        yield MESSAGE

    streams = OpenStreams()
    stream = streams.open(NS, "a")
    await stream.feed(messages())
    assert [await stream.receive(), await stream.receive()] == [MESSAGE, None]
    await streams.close()
