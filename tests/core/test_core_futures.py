"""Futures of an event loop that other threads answer."""

from __future__ import annotations

import asyncio

import pytest

from orlop.core import futures


async def test_a_thread_answers_with_a_result_or_an_error() -> None:
    loop = asyncio.get_running_loop()
    good, bad = loop.create_future(), loop.create_future()
    await asyncio.to_thread(futures.answer, good, good.set_result, 7)
    await asyncio.to_thread(futures.answer, bad, bad.set_exception, ValueError("why"))
    assert await good == 7
    with pytest.raises(ValueError, match="why"):
        await bad


async def test_a_future_that_is_cancelled_meanwhile_is_left_as_it_is() -> None:
    future = asyncio.get_running_loop().create_future()
    futures.answer(future, future.set_result, 7)
    future.cancel()
    await asyncio.sleep(0)
    assert future.cancelled()


def test_a_loop_that_has_ended_needs_no_answer() -> None:
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    loop.close()
    futures.answer(future, future.set_result, 7)
    assert not future.done()
