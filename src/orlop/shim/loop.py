"""The shim's event loop: coroutines over one epoll, in the words of asyncio and with as little as a shim can do with.

asyncio is not used here because of what it costs in every shim: a forked child pays for each page that it writes, and
to start asyncio's loop writes more pages than all of a shim's work. There is one loop in a process, so that its
functions are the module's own. What differs from asyncio: a future that a cancelled task waits for is left alone, so
that nothing needs shielding, and a task that fails with nobody waiting for it is logged at once.
"""

from __future__ import annotations

import ctypes
import heapq
import logging
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
Callback = Callable[[], object]

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_SIGINFO_SIZE = 128
_SFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # SFD_NONBLOCK and SFD_CLOEXEC are the same bits
_libc = ctypes.CDLL(None, use_errno=True)


class Cancelled(BaseException):
    """What is raised in a task that is cancelled."""


class Future(Generic[T]):
    """A result that is not there yet."""

    __slots__ = ("_callbacks", "_done", "_error", "_result")

    def __init__(self) -> None:
        self._done = False
        self._result: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callback] = []

    def done(self) -> bool:
        return self._done

    def result(self) -> T:
        """The result; raises what was set as error. Call only when `done`."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def set_result(self, result: T) -> None:
        self._result = result
        self._finish()

    def set_exception(self, error: BaseException) -> None:
        self._error = error
        self._finish()

    def add_done_callback(self, callback: Callback) -> None:
        """Has the loop call `callback` soon after this is done."""
        if self._done:
            call_soon(callback)
        else:
            self._callbacks.append(callback)

    def remove_done_callback(self, callback: Callback) -> None:
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def __await__(self) -> Generator[Future[T], None, T]:
        if not self._done:
            yield self
        return self.result()

    def _finish(self) -> None:
        self._done = True
        _ready.extend(self._callbacks)
        self._callbacks = []


class Task(Future[T]):
    """A coroutine that runs by itself; as a future it is what the coroutine returns or raises."""

    __slots__ = ("_coroutine", "_is_awaited", "_must_cancel", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, None, T]) -> None:
        super().__init__()
        self._coroutine = coroutine
        self._waits_for: Future[Any] | None = None
        self._must_cancel = False
        call_soon(self._step)

    def cancel(self) -> None:
        """Raises Cancelled in the coroutine where it waits now, or where it waits next."""
        if self._done:
            return
        self._must_cancel = True
        waits_for, self._waits_for = self._waits_for, None
        if waits_for is not None:
            waits_for.remove_done_callback(self._step)
            call_soon(self._step)

    def _step(self) -> None:
        global _current
        if self._done:
            return
        self._waits_for = None
        _current = self
        try:
            if self._must_cancel:
                self._must_cancel = False
                waits_for = self._coroutine.throw(Cancelled())
            else:
                waits_for = self._coroutine.send(None)
        except StopIteration as stop:
            self.set_result(stop.value)
        except (Exception, Cancelled) as error:
            if not self._callbacks and not isinstance(error, Cancelled):
                log.error("a task failed", exc_info=error)
            self.set_exception(error)
        else:
            self._waits_for = waits_for
            if self._must_cancel:  # it cancelled itself
                call_soon(self._step)
            else:
                waits_for.add_done_callback(self._step)
        finally:
            _current = None


class Event:
    """Something that happens once, or until it is cleared."""

    __slots__ = ("_future", "_set")

    def __init__(self) -> None:
        self._set = False
        self._future: Future[None] | None = None

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        if self._future is not None:
            self._future.set_result(None)
            self._future = None

    def clear(self) -> None:
        self._set = False

    async def wait(self) -> None:
        if not self._set:
            if self._future is None:
                self._future = Future()
            await self._future


class Lock:
    """Held by one task at a time; those that wait get it in their order."""

    __slots__ = ("_waiters", "held")

    def __init__(self) -> None:
        self.held = False
        self._waiters: deque[Future[None]] | None = None

    async def __aenter__(self) -> None:
        if not self.held:
            self.held = True
            return
        waiter: Future[None] = Future()
        if self._waiters is None:
            self._waiters = deque()
        self._waiters.append(waiter)
        try:
            await waiter
        except Cancelled:
            if waiter.done():  # it was given the lock and cannot take it
                self._hand_on()
            else:
                self._waiters.remove(waiter)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._hand_on()

    def _hand_on(self) -> None:
        if self._waiters:
            self._waiters.popleft().set_result(None)
        else:
            self.held = False


class Timer:
    """A call at a later time."""

    __slots__ = ("at", "callback")

    def __init__(self, at: float, callback: Callback) -> None:
        self.at = at
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.at < other.at


class timeout:  # noqa: N801 - as asyncio's
    """`async with timeout(seconds)`: what takes longer is cancelled, and TimeoutError raised."""

    __slots__ = ("_expired", "_seconds", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._expired = False

    def expired(self) -> bool:
        return self._expired

    async def __aenter__(self) -> timeout:
        assert _current is not None
        self._task = _current
        self._timer = call_later(self._seconds, self._expire)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._expired and isinstance(error, Cancelled):
            raise TimeoutError from error

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()


_ready: deque[Callback] = deque()
_timers: list[Timer] = []
_readers: dict[int, Callback] = {}
_writers: dict[int, Callback] = {}
_signal_handlers: dict[int, Callback] = {}
_current: Task[Any] | None = None
_epoll: select.epoll | None = None
_signal_descriptor = -1
_rest: tuple[float, Callback] | None = None
_rests = False


def run(main: Coroutine[Any, None, T]) -> T:
    """Runs the loop until `main` is done, and returns what it returns. Once in a process at a time.

    Signals that were blocked before are blocked after.
    """
    global _epoll
    _epoll = select.epoll()
    were_blocked = _signal_descriptor >= 0
    try:
        task = Task(main)
        task.add_done_callback(_nothing)  # somebody waits for it
        while not task.done():
            _turn(_epoll)
        return task.result()
    finally:
        _close()
        if not were_blocked:
            _unblock_signals()


def create_task(coroutine: Coroutine[Any, None, T]) -> Task[T]:
    return Task(coroutine)


def call_soon(callback: Callback) -> None:
    _ready.append(callback)


def call_later(seconds: float, callback: Callback) -> Timer:
    timer = Timer(time.monotonic() + seconds, callback)
    heapq.heappush(_timers, timer)
    return timer


def on_rest(seconds: float, callback: Callback) -> None:
    """Calls `callback` each time that nothing has happened for `seconds` and no timer runs."""
    global _rest
    _rest = seconds, callback


def watched() -> dict[int, int]:
    """The events that are waited for, by descriptor, signals apart."""
    descriptors = {*_readers, *_writers} - {_signal_descriptor}
    return {descriptor: _events(descriptor) for descriptor in descriptors}


def is_busy() -> bool:
    """Whether something is to be done already."""
    return bool(_ready or _timers)


def own() -> set[int]:
    """The descriptor that every run of the loop makes anew."""
    return set() if _epoll is None else {_epoll.fileno()}


async def sleep(seconds: float) -> None:
    future: Future[None] = Future()
    timer = call_later(seconds, lambda: future.set_result(None))
    try:
        await future
    finally:
        timer.cancel()


async def all_done(futures: Sequence[Future[Any]], seconds: float) -> bool:
    """Waits until all of `futures` are done, whatever their results; False after `seconds`."""
    try:
        async with timeout(seconds):
            for future in futures:
                if not future.done():
                    done = Event()
                    future.add_done_callback(done.set)
                    await done.wait()
    except TimeoutError:
        return False
    return True


def add_reader(descriptor: int, callback: Callback) -> None:
    """Calls `callback` whenever `descriptor` can be read, in place of what was called before.

    Raises PermissionError for a file that is always ready.
    """
    _watch(descriptor, _readers, callback)


def remove_reader(descriptor: int) -> None:
    _unwatch(descriptor, _readers)


def add_writer(descriptor: int, callback: Callback) -> None:
    """Calls `callback` whenever `descriptor` can be written. Raises PermissionError for a file that is always ready."""
    _watch(descriptor, _writers, callback)


def remove_writer(descriptor: int) -> None:
    _unwatch(descriptor, _writers)


def block_signals() -> int:
    """Blocks the signals that this loop can handle, and returns a descriptor that tells of them in their place.

    Both are inherited by a forked child, to which the descriptor tells of the child's signals.
    """
    global _signal_descriptor
    if _signal_descriptor < 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        mask = sum(1 << (number - 1) for number in _SIGNALS).to_bytes(_SIGINFO_SIZE, "little")
        descriptor = _libc.signalfd(-1, mask, _SFD_FLAGS)
        if descriptor < 0:
            error = ctypes.get_errno()
            raise OSError(error, f"signalfd: {os.strerror(error)}")
        _signal_descriptor = descriptor
    return _signal_descriptor


def add_signal_handler(number: int, callback: Callback) -> None:
    """Calls `callback` for signal `number`: TERM, INT or CHLD."""
    assert number in _SIGNALS
    if not _signal_handlers:
        add_reader(block_signals(), _signalled)
    _signal_handlers[number] = callback


def signalled(number: int) -> None:
    """Handles signal `number`, which came to another process in this one's place."""
    handler = _signal_handlers.get(number)
    if handler is not None:
        handler()


def _turn(epoll: select.epoll) -> None:
    """One round: waits for something to happen if nothing is to be done, then does all that is to be done now."""
    global _rests
    wait: float = -1
    may_rest = False
    if _ready:
        wait = 0
    else:
        while _timers and _timers[0].callback is None:
            heapq.heappop(_timers)
        if _timers:
            wait = max(_timers[0].at - time.monotonic(), 0)
        elif _rest is not None and not _rests:
            wait, may_rest = _rest[0], True
    happened = epoll.poll(wait)
    if happened or _ready or _timers:
        _rests = False
    elif may_rest and _rest is not None:
        _rests = True
        _call(_rest[1])
    for descriptor, events in happened:
        # looked up now, as the one called before may have taken the next away
        if events & ~select.EPOLLOUT and descriptor in _readers:
            _call(_readers[descriptor])
        if events & ~select.EPOLLIN and descriptor in _writers:
            _call(_writers[descriptor])
    if _timers:
        now = time.monotonic()
        while _timers and _timers[0].at <= now:
            callback = heapq.heappop(_timers).callback
            if callback is not None:
                _ready.append(callback)
    for _ in range(len(_ready)):
        _call(_ready.popleft())


def _call(callback: Callback) -> None:
    try:
        callback()
    except Exception:
        log.exception("a callback failed")


def _watch(descriptor: int, table: dict[int, Callback], callback: Callback) -> None:
    assert _epoll is not None
    known = descriptor in _readers or descriptor in _writers
    before = table.get(descriptor)
    table[descriptor] = callback
    if before is not None:
        return
    events = _events(descriptor)
    try:
        if known:
            _epoll.modify(descriptor, events)
        else:
            _epoll.register(descriptor, events)
    except OSError:
        del table[descriptor]
        raise


def _unwatch(descriptor: int, table: dict[int, Callback]) -> None:
    if table.pop(descriptor, None) is None or _epoll is None:
        return
    events = _events(descriptor)
    if events:
        _epoll.modify(descriptor, events)
    else:
        _epoll.unregister(descriptor)


def _events(descriptor: int) -> int:
    return (select.EPOLLIN if descriptor in _readers else 0) | (select.EPOLLOUT if descriptor in _writers else 0)


def _signalled() -> None:
    try:
        told = os.read(_signal_descriptor, 16 * _SIGINFO_SIZE)
    except BlockingIOError:
        return
    for start in range(0, len(told), _SIGINFO_SIZE):
        signalled(told[start])  # the number is the first field, little-endian on all that we run on


def _nothing() -> None:
    return


def _close() -> None:
    global _epoll, _rest, _rests
    for table in (_ready, _timers, _readers, _writers):
        table.clear()
    _rest, _rests = None, False
    if _epoll is not None:
        _epoll.close()
        _epoll = None
    _signal_handlers.clear()


def _unblock_signals() -> None:
    global _signal_descriptor
    if _signal_descriptor >= 0:
        os.close(_signal_descriptor)
        _signal_descriptor = -1
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
