"""The shim's event loop by itself."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from orlop.shim import loop


def test_run_returns_what_main_returns_and_raises_what_it_raises() -> None:
    async def main(fail: bool) -> int:
        await loop.sleep(0)
        if fail:
            raise ValueError("no")
        return 7

    assert loop.run(main(False)) == 7
    with pytest.raises(ValueError, match="no"):
        loop.run(main(True))


def test_what_takes_too_long_is_cancelled_and_what_it_waits_for_is_not() -> None:
    async def main() -> list[str]:
        seen: list[str] = []
        future: loop.Future[int] = loop.Future()
        try:
            async with loop.timeout(0.01):
                try:
                    await future
                except loop.Cancelled:
                    seen.append("cancelled")
                    raise
        except TimeoutError:
            seen.append("timeout")
        future.set_result(3)
        seen.append(str(await future))
        return seen

    assert loop.run(main()) == ["cancelled", "timeout", "3"]


def test_a_lock_goes_round_in_order_and_past_a_cancelled_waiter() -> None:
    async def main() -> list[str]:
        lock, order = loop.Lock(), []

        async def hold(name: str) -> None:
            async with lock:
                order.append(name)
                await loop.sleep(0)

        tasks = {name: loop.create_task(hold(name)) for name in "abcd"}
        while not order:
            await loop.sleep(0)
        tasks["b"].cancel()
        await loop.all_done(list(tasks.values()), 5)
        with pytest.raises(loop.Cancelled):
            tasks["b"].result()
        return order

    assert loop.run(main()) == ["a", "c", "d"]


def test_a_lock_given_to_a_task_that_is_cancelled_goes_on_to_the_next() -> None:
    async def main() -> list[str]:
        lock, order = loop.Lock(), []
        first = loop.Event()

        async def hold(name: str, until: loop.Event | None = None) -> None:
            async with lock:
                order.append(name)
                if until is not None:
                    await until.wait()

        holder = loop.create_task(hold("a", first))
        while not order:
            await loop.sleep(0)
        waiter, last = loop.create_task(hold("b")), loop.create_task(hold("c"))
        await loop.sleep(0)
        first.set()
        while not holder.done():
            await loop.sleep(0)
        waiter.cancel()
        assert await loop.all_done([last], 5)
        return order

    assert loop.run(main())[-1] == "c"


def test_a_callback_is_not_called_for_a_descriptor_that_was_taken_away() -> None:
    async def main() -> list[int]:
        called: list[int] = []
        pipes = [os.pipe() for _ in range(2)]
        done = loop.Event()

        def arrived(number: int) -> None:
            called.append(number)
            for reader, _ in pipes:
                loop.remove_reader(reader)
            done.set()

        for number, (reader, writer) in enumerate(pipes):
            loop.add_reader(reader, lambda number=number: arrived(number))  # type: ignore[misc]
            os.write(writer, b"x")
        await done.wait()
        await loop.sleep(0)
        for pair in pipes:
            for descriptor in pair:
                os.close(descriptor)
        return called

    assert len(loop.run(main())) == 1


def test_a_signal_is_told_and_works_as_before_once_the_loop_is_over() -> None:
    async def main() -> None:
        told = loop.Event()
        loop.add_signal_handler(signal.SIGTERM, told.set)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # this process may have other threads
        await told.wait()

    loop.run(main())
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_failing_task_and_a_failing_callback_do_not_end_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise ValueError("task")

    async def main() -> None:
        loop.create_task(fails())
        loop.call_soon(lambda: 1 // 0)
        await loop.sleep(0.01)

    loop.run(main())
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError, ValueError] or [
        record.exc_info[0] for record in caplog.records if record.exc_info
    ] == [ValueError, ZeroDivisionError]


def test_rest_is_told_once_until_something_happens_and_not_while_a_timer_runs() -> None:
    async def main() -> list[str]:
        seen: list[str] = []
        rested = loop.Event()

        def rest() -> None:
            seen.append("rest")
            rested.set()

        loop.on_rest(0.01, rest)
        await loop.sleep(0.05)
        seen.append("slept")
        for word in ("first", "second"):
            outlet, inlet = os.pipe()
            rested.clear()
            await rested.wait()
            loop.add_reader(outlet, rested.set)
            threading.Timer(0.05, os.write, (inlet, b"x")).start()
            rested.clear()
            await rested.wait()
            loop.remove_reader(outlet)
            seen.append(word)
            os.close(outlet)
            os.close(inlet)
        return seen

    assert loop.run(main()) == ["slept", "rest", "first", "rest", "second"]
