"""Children: how they are spawned and how their exits are learnt. The one owner of `waitid` in a shim.

A shim is a child subreaper, so that a container's init and its exec'd processes, orphaned when the runtime that made
them exits, become the shim's own children. Their pids become known (from a pid file) only after they may have died;
`Reaper.watch` keeps the exits of that time.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from orlop.shim import loop
from orlop.shim.loop import Future

_PR_SET_CHILD_SUBREAPER = 36
_FIRST_SPARE_DESCRIPTOR = 10
_SIGNALS = sorted(int(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a process: `status` as a shell gives it (128 + signal), `at` in nanoseconds since 1970."""

    pid: int
    status: int
    at: int


@dataclass(frozen=True, slots=True)
class Child:
    """A process of ours; `exit` is done when it has been reaped."""

    pid: int
    exit: Future[Exit]

    def kill(self, number: int) -> bool:
        """Sends signal `number`; False if the process has ended. The pid cannot belong to another until we reap it."""
        if self.exit.done():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


@dataclass(slots=True, eq=False)
class Watch:
    """The exits that came during a `Reaper.watch` and were nobody's."""

    reaper: Reaper
    exits: dict[int, Exit] = field(default_factory=dict)

    def claim(self, pid: int) -> Child:
        """The child `pid`, whether it has ended already or not."""
        early = self.exits.pop(pid, None)
        if early is None or _is_our_child(pid):  # a pid in use again: the exit was of an earlier process
            return self.reaper.adopt(pid)
        future: Future[Exit] = Future()
        future.set_result(early)
        return Child(pid, future)


class Reaper:
    """Reaps every child of this process and tells whoever waits for it."""

    def __init__(self) -> None:
        self._awaited: dict[int, Future[Exit]] = {}
        self._watches: list[Watch] = []

    def install(self) -> None:
        """Makes this process a subreaper and reaps in the running loop from now on."""
        if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot become a child subreaper: {os.strerror(number)}")
        loop.add_signal_handler(signal.SIGCHLD, self.reap)
        self.reap()

    def reap(self) -> None:
        """Collects all children that have ended; signals merge, so one call may find many or none."""
        while True:
            try:
                result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return
            if result is None:
                return
            status = result.si_status if result.si_code == os.CLD_EXITED else 128 + result.si_status
            self._tell(Exit(result.si_pid, status, time.time_ns()))

    @contextlib.contextmanager
    def watch(self) -> Iterator[Watch]:
        """Keeps exits that nobody awaits yet, for as long as the context lasts."""
        watch = Watch(self)
        self._watches.append(watch)
        try:
            yield watch
        finally:
            self._watches.remove(watch)

    def adopt(self, pid: int) -> Child:
        """The child `pid`, which is known not to have been reaped."""
        future: Future[Exit] = Future()
        self._awaited[pid] = future
        return Child(pid, future)

    def spawn(self, argv: Sequence[str], environment: Mapping[bytes, bytes], files: Mapping[int, int]) -> Child:
        """Runs `argv` in a process group of its own with default signals and only the descriptors of `files`.

        `files` maps the child's descriptors to ours; of 0, 1 and 2 those not named are `/dev/null`. Raises OSError.
        """
        with contextlib.ExitStack() as stack:
            sources = {number: _spare(stack, source) for number, source in files.items()}
            for number in range(3):
                if number not in sources:
                    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                    stack.callback(os.close, null)
                    sources[number] = _spare(stack, null)
            pid = os.posix_spawnp(
                argv[0],
                list(argv),
                environment,
                file_actions=[(os.POSIX_SPAWN_DUP2, source, number) for number, source in sources.items()],
                setpgroup=0,
                setsigmask=[],
                setsigdef=_SIGNALS,
            )
        return self.adopt(pid)  # no await since the spawn: nothing can have reaped it

    def _tell(self, ended: Exit) -> None:
        future = self._awaited.pop(ended.pid, None)
        if future is not None:
            if not future.done():
                future.set_result(ended)
            return
        for watch in self._watches:
            watch.exits[ended.pid] = ended


def _spare(stack: contextlib.ExitStack, source: int) -> int:
    """A copy of `source` out of the way of the numbers a child's descriptors get."""
    copy = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _FIRST_SPARE_DESCRIPTOR)
    stack.callback(os.close, copy)
    return copy


def _is_our_child(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
