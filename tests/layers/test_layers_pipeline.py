"""Stages of a stream: short ones need no threads, and nothing is lost where threads begin."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

import pytest

from orlop.errors import Canceled, Unknown
from orlop.layers.pipeline import Ahead, Digester


def pieces_of(count: int) -> list[bytes]:
    return [bytes([number % 256]) * 100 for number in range(count)]


def helpers() -> int:
    return sum(thread.name in ("layer-read", "layer-digest") for thread in threading.enumerate())


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 10, 100])
def test_all_pieces_come_in_order_and_are_digested(count: int) -> None:
    pieces = pieces_of(count)
    with Ahead(iter(pieces), threading.Event()) as ahead, Digester() as digester:
        assert list(digester.passing(ahead)) == pieces
    data = b"".join(pieces)
    assert (digester.digest, digester.size) == (f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    assert not helpers()


def test_a_short_stream_has_no_threads_and_a_long_one_has() -> None:
    with Ahead(iter(pieces_of(8)), threading.Event()) as ahead, Digester() as digester:
        for _ in digester.passing(ahead):
            assert not helpers()
    with Ahead(iter(pieces_of(100)), threading.Event()) as ahead, Digester() as digester:
        assert max(helpers() for _ in digester.passing(ahead)) >= 1


@pytest.mark.parametrize("good", [3, 30])
def test_what_the_source_fails_with_is_raised_behind_what_came_before(good: int) -> None:
    def source() -> Iterator[bytes]:
        yield from pieces_of(good)
        raise Unknown("damaged")

    came: list[bytes] = []
    with Ahead(source(), threading.Event()) as ahead, pytest.raises(Unknown, match="damaged"):
        came.extend(ahead)
    assert not helpers()


@pytest.mark.parametrize("taken", [2, 20])
def test_who_leaves_early_ends_the_source(taken: int) -> None:
    ended = threading.Event()

    def source() -> Iterator[bytes]:
        try:
            yield from pieces_of(1000)
        finally:
            ended.set()

    stop = threading.Event()
    with Ahead(source(), stop) as ahead:
        iterator = iter(ahead)
        for _ in range(taken):
            next(iterator)
    assert ended.is_set()
    assert stop.is_set()
    assert not helpers()


@pytest.mark.parametrize("taken", [2, 20])
def test_a_stream_that_is_stopped_is_cancelled(taken: int) -> None:
    stop = threading.Event()
    with Ahead(iter(pieces_of(1000)), stop) as ahead:
        iterator = iter(ahead)
        for _ in range(taken):
            next(iterator)
        stop.set()
        with pytest.raises(Canceled):
            list(iterator)
