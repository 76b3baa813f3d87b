"""A shim's two processes: the keeper, which stays, and the worker, which is there while something is to be done.

The keeper is the shim's pid and the parent of its containers' processes. It does three things: it forks a worker,
waits, and passes on what only it can learn, which child has ended and which signal came. A worker that has had nothing
to do for a while writes down what it knows and exits; the next is forked when one of its descriptors has something to
say. So a shim whose container only runs is a process that has executed nearly nothing since it was forked, and
therefore has written to nearly none of the pages that it shares with all others.

Both have one table of descriptors (CLONE_FILES): what a worker opens stays open when it exits, under the same number.
A worker that dies in any other way takes the keeper along: only it knew how things stood.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import marshal
import os
import select
import signal
import struct
import time
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from orlop.shim import loop

REST = 2.0
"""Seconds without anything to do after which a worker goes, where nobody says otherwise."""
HIBERNATED = 75
"""A worker's exit status that says: wake another one when there is something to do."""

_SYS_CLONE3 = 435  # on all architectures
_CLONE_FILES, _CLONE_PARENT = 0x400, 0x8000
_CLONE_ARGS = struct.Struct("=8Q")
_PR_SET_PDEATHSIG = 1
_EXIT = struct.Struct("=iiq")
_EXITS_AT_ONCE = 64
_PAUSE = 0.1
# PyDLL, as for the fork server's fork.
_libc = ctypes.PyDLL(None, use_errno=True)
_clone3 = _libc.syscall
_clone3.argtypes = (ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t)
_clone3.restype = ctypes.c_long


def is_possible() -> bool:
    """Whether there is clone3, which old kernels and some filters of system calls do not have."""
    _clone3(_SYS_CLONE3, None, 0)
    return ctypes.get_errno() == errno.EINVAL


class Keeper:
    """Made in the fork server, so that all that a keeper needs is there before it is forked."""

    def __init__(self, rest: float = REST) -> None:
        self.rest = rest
        self.pid = 0
        self._signals = loop.block_signals()
        # Only the numbers are taken here: the first worker puts its own descriptors there.
        self._wake, self.exits, self._tell, self._record = (
            os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(4)
        )
        self._arguments = ctypes.create_string_buffer(
            _CLONE_ARGS.pack(_CLONE_FILES, 0, 0, 0, signal.SIGCHLD, 0, 0, 0), _CLONE_ARGS.size
        )
        self._address = ctypes.addressof(self._arguments)
        self._awake, self._asleep = select.poll(), select.poll()
        for poll in (self._awake, self._asleep):
            poll.register(self._signals, select.POLLIN)
        self._asleep.register(self._wake, select.POLLIN)
        self._worker = 0

    @property
    def descriptors(self) -> set[int]:
        """What a process that becomes a keeper must leave open."""
        return {self._signals, self._wake, self.exits, self._tell, self._record}

    def keep(self) -> bool:
        """Makes this process a keeper, and returns in each of its workers: True in the first.

        Raises OSError where no worker can be forked.
        """
        self.pid = os.getpid()
        is_first = True
        while self._fork(is_first):
            is_first = False
            self._watch()
        _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != self.pid:
            os._exit(1)
        if is_first:
            self._open()
        return is_first

    # What follows is the worker's.

    def told(self) -> list[tuple[int, int, int]]:
        """The exits (pid, status, nanoseconds since 1970) and signals (0, number, 0) that came since the last call."""
        told = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                told += os.read(self.exits, _EXIT.size * _EXITS_AT_ONCE)
        return list(_EXIT.iter_unpack(told))

    def recorded(self) -> dict[str, Any]:
        """What the last worker gave to `sleep`."""
        size = os.fstat(self._record).st_size
        record: dict[str, Any] = marshal.loads(os.pread(self._record, size, 0))  # noqa: S302 - our own
        return record

    def sleep(self, record: dict[str, Any], wakers: Mapping[int, int], own: Collection[int]) -> NoReturn:
        """Ends this worker and closes its `own` descriptors. Raises OSError if it has to go on.

        The next worker is woken by one of the events, by descriptor, of `wakers`, or by an exit.
        """
        content = marshal.dumps(record)
        os.ftruncate(self._record, 0)
        os.pwrite(self._record, content, 0)
        with select.epoll() as wake:
            for descriptor, events in wakers.items():
                wake.register(descriptor, events)
            os.dup2(wake.fileno(), self._wake, inheritable=False)
        for descriptor in own:
            os.close(descriptor)
        os._exit(HIBERNATED)

    def fork(self) -> int:
        """A fork of this worker that is the keeper's child, and outlives this one. Raises OSError."""
        # with CLONE_PARENT its end is signalled as ours is
        arguments = ctypes.create_string_buffer(_CLONE_ARGS.pack(_CLONE_PARENT, *[0] * 7), _CLONE_ARGS.size)
        return _clone(ctypes.addressof(arguments))

    def _open(self) -> None:
        told, tell = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(told, False)
        record = os.memfd_create("record", os.MFD_CLOEXEC)
        for source, number in ((told, self.exits), (tell, self._tell), (record, self._record)):
            os.dup2(source, number, inheritable=False)
            os.close(source)

    # What follows is the keeper's, and meant to touch as little as can be.

    def _fork(self, may_fail: bool) -> int:
        while True:
            try:
                self._worker = _clone(self._address)
            except OSError:
                if may_fail:
                    raise
                time.sleep(_PAUSE)  # no memory, or too many processes: what a worker is needed for waits
            else:
                return self._worker

    def _watch(self) -> None:
        """Returns when a worker is needed. Ends this process when the shim has ended."""
        while True:
            poll = self._awake if self._worker else self._asleep
            for descriptor, _ in poll.poll():
                if descriptor == self._signals:
                    self._signalled()
                elif not self._worker:
                    return

    def _signalled(self) -> None:
        number = os.read(self._signals, 128)[0]
        if number != signal.SIGCHLD:
            os.write(self._tell, _EXIT.pack(0, number, 0))
            return
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid, status = ended.si_pid, ended.si_status
            if ended.si_code != os.CLD_EXITED:
                status += 128
            if pid == self._worker:
                if status != HIBERNATED:
                    if status:
                        os.write(
                            2, b'level=ERROR msg="the worker ended with status %d, and this shim with it"\n' % status
                        )
                    os._exit(status)
                self._worker = 0
            else:
                # told before it is reaped: so whoever has heard of no exit may rely on the pid
                os.write(self._tell, _EXIT.pack(pid, status, time.time_ns()))
            os.waitid(os.P_PID, pid, os.WEXITED)


def _clone(arguments: int) -> int:
    """A fork as the structure at the address `arguments` says."""
    pid: int = _clone3(_SYS_CLONE3, arguments, _CLONE_ARGS.size)
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"clone3: {os.strerror(number)}")
    return pid
