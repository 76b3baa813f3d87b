"""The daemon that calls a shim's `start`: which version of the contract it takes.

containerd 1.6 sets no `MAX_SHIM_VERSION` and takes an address alone. From 1.7 on it says 2; but 2.0 and later take 3,
which their sandboxes need, and 1.7 refuses it. Those that send parameters are 2.3 or later. All others call alike, so
that the daemon's binary is asked which it is, while the shim is started.
"""

from __future__ import annotations

import os
import re
import select
import signal
import time

ADDRESS_ALONE = 0

_NEWEST = 3
_VERSION = re.compile(rb"containerd \S+ v?([0-9]{1,4})\.")
"""`containerd github.com/containerd/containerd/v2 v2.2.0 REVISION`; distributions and forks have other modules."""
_LIMIT = 5.0
"""Seconds for the binary's answer."""
_ANSWER_SIZE = 4096


class Caller:
    def __init__(self, binary: str, *, sends_parameters: bool) -> None:
        told = os.environ.get("MAX_SHIM_VERSION")
        self._known: int | None = None
        self._asked: _Question | None = None
        if sends_parameters:
            self._known = _NEWEST
        elif told is None:
            self._known = ADDRESS_ALONE
        elif told != "2":
            self._known = max(2, min(_NEWEST, int(told))) if told.isdecimal() else _NEWEST
        elif binary:
            self._asked = _Question(binary)

    def version(self) -> int:
        """The newest that it takes, or `ADDRESS_ALONE`."""
        if self._known is None:
            said = self._asked.answer() if self._asked is not None else b""
            found = _VERSION.match(said)
            self._known = _NEWEST if found is not None and int(found[1]) >= 2 else 2
        return self._known


class _Question:
    """`binary --version`, which runs until `answer` is called. The answer of one that cannot be run is empty."""

    def __init__(self, binary: str) -> None:
        self._pid = 0
        self._outlet, inlet = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.set_blocking(inlet, True)
            actions = [(os.POSIX_SPAWN_DUP2, source, number) for number, source in enumerate((null, inlet, null))]
            self._pid = os.posix_spawn(binary, [binary, "--version"], dict(os.environ), file_actions=actions)
        except OSError:
            pass
        finally:
            os.close(inlet)
            os.close(null)

    def answer(self) -> bytes:
        said = b""
        poller = select.poll()
        poller.register(self._outlet, select.POLLIN)
        deadline = time.monotonic() + _LIMIT
        while len(said) < _ANSWER_SIZE and poller.poll(max(0, 1000 * (deadline - time.monotonic()))):
            chunk = os.read(self._outlet, _ANSWER_SIZE)
            if not chunk:
                break
            said += chunk
        os.close(self._outlet)
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)  # it has said what it had to, or time is up
            os.waitpid(self._pid, 0)
        return said
