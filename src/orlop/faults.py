"""Fault points: named places between two durable steps where a test can make a fault happen.

    faults.point("content.commit.renamed")

does nothing unless the environment variable `ORLOP_FAULTS` names the point when the process starts (or a test calls
`arm`). The variable holds `name=actions` pairs separated by `;`. Actions are applied one call at a time, joined by
`->`, each preceded by how often it holds (`3*`; without it: for ever), in the manner of FreeBSD's fail(9):

    off | error(ENOSPC) | kill | exit(3) | delay(200) | stop

`error` raises OSError with that errno, `kill` sends SIGKILL to this process, `delay` sleeps milliseconds and `stop`
sends SIGSTOP.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

_ACTION = re.compile(r"(?:(\d+)\*)?(off|error|kill|exit|delay|stop)(?:\(([A-Z0-9]*)\))?", re.ASCII)

_armed: dict[str, list[tuple[int | None, str, str]]] = {}
seen: set[str] = set()
"""Names of the points this process has passed; a crash test loops over them. Filled only while something is armed."""


def point(name: str) -> None:
    """A place where a fault may be made to happen."""
    if _armed:
        _happen(name)


def arm(name: str, actions: str) -> None:
    """Makes `actions` happen at `name`. Raises ValueError if they do not parse."""
    parsed: list[tuple[int | None, str, str]] = []
    for text in actions.split("->"):
        match = _ACTION.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"fault {name}: cannot read action {text!r}")
        count, verb, argument = match.groups()
        parsed.append((int(count) if count else None, verb, argument or ""))
    _armed[name] = parsed


def disarm() -> None:
    """Forgets all faults."""
    _armed.clear()
    seen.clear()


@contextmanager
def suspended() -> Iterator[None]:
    """Nothing happens inside, nor is it seen: for steps that are only played."""
    armed = dict(_armed)
    _armed.clear()
    try:
        yield
    finally:
        _armed.update(armed)


def arm_from_environment(text: str | None = None) -> None:
    """Arms what `ORLOP_FAULTS` (or `text`) names."""
    for pair in (text if text is not None else os.environ.get("ORLOP_FAULTS", "")).split(";"):
        if pair.strip():
            name, _, actions = pair.strip().partition("=")
            arm(name, actions)


def _happen(name: str) -> None:
    seen.add(name)
    actions = _armed.get(name)
    if not actions:
        return
    count, verb, argument = actions[0]
    if count is not None:
        if count <= 1:
            actions.pop(0)
        else:
            actions[0] = (count - 1, verb, argument)
    if verb == "error":
        number = getattr(errno, argument)
        raise OSError(number, f"{os.strerror(number)} (fault {name})")
    if verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif verb == "exit":
        os._exit(int(argument or 1))
    elif verb == "delay":
        time.sleep(int(argument) / 1000)


arm_from_environment()
