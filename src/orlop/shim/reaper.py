"""Children: how they are spawned and how their exits are learnt. The one owner of `waitid` in a shim.

A shim is a child subreaper, so that a container's init and its exec'd processes, orphaned when the runtime that made
them exits, become the shim's own children: the keeper's where there is one, which tells of their exits. Their pids
become known (from a pid file) only after they may have died; `Reaper.watch` keeps the exits of that time.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from orlop.shim import files, loop, sealed
from orlop.shim.keeper import Keeper
from orlop.shim.loop import Future

_PR_SET_CHILD_SUBREAPER = 36
_FIRST_SPARE_DESCRIPTOR = 10
_SIGNALS = sorted(int(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_libc = ctypes.CDLL(None, use_errno=True)
# Not os.fork, for the reason that the fork server gives.
_python = ctypes.PyDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a process: `status` as a shell gives it (128 + signal), `at` in nanoseconds since 1970."""

    pid: int
    status: int
    at: int


@dataclass(frozen=True, slots=True)
class Child:
    """A process of ours; `exit` is done when it has been reaped, of which `reap` learns."""

    pid: int
    exit: Future[Exit]
    reap: Callable[[], None]

    def kill(self, number: int) -> bool:
        """Sends signal `number`; False if the process has ended."""
        if self.exit.done():
            return False
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            # If it has not been reaped by now, the pid was not another's when it was opened.
            self.reap()
            if self.exit.done():
                return False
            signal.pidfd_send_signal(process, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(process)
        return True


@dataclass(slots=True, eq=False)
class Watch:
    """The exits that came during a `Reaper.watch` and were nobody's."""

    reaper: Reaper
    exits: dict[int, Exit] = field(default_factory=dict)

    def claim(self, pid: int) -> Child:
        """The child `pid`, whether it has ended already or not."""
        self.reaper.reap()
        early = self.exits.pop(pid, None)
        if early is None or self.reaper.has_child(pid):  # a pid in use again: the exit was of an earlier process
            return self.reaper.adopt(pid)
        return self.reaper.ended(early)


class Reaper:
    """Reaps every child of this process, or hears of it from the `keeper`, and tells whoever waits for it."""

    def __init__(self, keeper: Keeper | None = None) -> None:
        self._keeper = keeper
        self._awaited: dict[int, Future[Exit]] = {}
        self._watches: list[Watch] = []

    @property
    def shim_pid(self) -> int:
        """The process that ends with the shim: this one, or its keeper."""
        return self._keeper.pid if self._keeper is not None else os.getpid()

    def install(self) -> None:
        """Makes this process a subreaper where it has no keeper, and reaps in the running loop from now on."""
        if self._keeper is None:
            become_subreaper()
        else:
            loop.add_reader(self._keeper.exits, self.reap)
        loop.add_signal_handler(signal.SIGCHLD, self.reap)
        self.reap()

    def awaited(self) -> set[int]:
        """The children whose exits somebody waits for."""
        return {pid for pid, future in self._awaited.items() if not future.done()}

    def reap(self) -> None:
        """Collects all children that have ended; signals merge, so one call may find many or none."""
        if self._keeper is not None:
            for pid, status, at in self._keeper.told():
                if pid:
                    self._tell(Exit(pid, status, at))
                else:
                    loop.signalled(status)
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
        return Child(pid, future, self.reap)

    def ended(self, exit: Exit) -> Child:
        """The child that ended with `exit`."""
        future: Future[Exit] = Future()
        future.set_result(exit)
        return Child(exit.pid, future, self.reap)

    def has_child(self, pid: int) -> bool:
        """Whether `pid` is a child that has not been reaped."""
        if self._keeper is not None:
            return _parent_of(pid) == self._keeper.pid
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

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
            program = sealed.program(argv[0])
            try:
                pid = _spawn(program, argv, environment, sources)
            except OSError:  # a policy of this host may forbid to execute memory
                if program == argv[0]:
                    raise
                pid = _spawn(argv[0], argv, environment, sources)
        return self.adopt(pid)  # no await since the spawn: nothing can have reaped it

    def fork(self) -> int:
        """Forks a child that lives on when this process does not, where there is a keeper. Raises OSError."""
        if self._keeper is not None:
            return self._keeper.fork()
        pid: int = _python.fork()
        if pid < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"fork: {os.strerror(number)}")
        return pid

    def _tell(self, ended: Exit) -> None:
        future = self._awaited.pop(ended.pid, None)
        if future is not None:
            if not future.done():
                future.set_result(ended)
            return
        for watch in self._watches:
            watch.exits[ended.pid] = ended


def become_subreaper() -> None:
    """Makes orphans below this process its children. Raises OSError."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot become a child subreaper: {os.strerror(number)}")


def _spawn(program: str, argv: Sequence[str], environment: Mapping[bytes, bytes], files: Mapping[int, int]) -> int:
    return os.posix_spawnp(
        program,
        list(argv),
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, source, number) for number, source in files.items()],
        setpgroup=0,
        setsigmask=[],
        setsigdef=_SIGNALS,
    )


def _spare(stack: contextlib.ExitStack, source: int) -> int:
    """A copy of `source` out of the way of the numbers a child's descriptors get."""
    copy = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _FIRST_SPARE_DESCRIPTOR)
    stack.callback(os.close, copy)
    return copy


def _parent_of(pid: int) -> int:
    """The parent of `pid`; 0 if there is no such process."""
    try:
        told = files.read(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(told.rpartition(b")")[2].split()[1])
