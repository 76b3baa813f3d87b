"""How work on several layers at a time is shown: one live display on a terminal, elsewhere a line where a phase begins.

All of it goes to standard error; standard output is for results.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from orlop.cli import output

if TYPE_CHECKING:
    from rich.console import RenderableType

DONE, SHARED, WAITING = "done", "here already", "waiting"
_ENDED = frozenset({DONE, SHARED})
_BAR = 24


@dataclass(slots=True)
class Part:
    """A layer, say, on its way: `done` bytes of `total` in this phase."""

    title: str
    phase: str = ""
    done: int = 0
    total: int = 0
    began: float = field(default_factory=time.monotonic)
    done_before: int = 0
    """What was there when the phase began."""
    arrived: int = 0
    """Bytes that have been moved for it, in whatever phase; none for what was here already."""

    def rate(self) -> float:
        """Bytes a second in this phase; 0 where nothing has moved."""
        seconds = time.monotonic() - self.began
        return (self.done - self.done_before) / seconds if seconds > 0.2 else 0


class Display(Protocol):
    """May be told from any thread."""

    def say(self, text: str) -> None:
        """What goes on as a whole."""

    def part(self, title: str, phase: str, done: int = 0, total: int = 0) -> None:
        """What goes on with one part. Told again and again; only what changes is shown anew."""


@contextmanager
def display(*, quiet: bool) -> Iterator[Display]:
    """The display that fits where standard error goes."""
    if quiet:
        yield _Silent()
    elif os.isatty(2):
        with _live() as live:
            yield live
    else:
        yield _Plain()


class _Silent:
    def say(self, text: str) -> None:
        return

    def part(self, title: str, phase: str, done: int = 0, total: int = 0) -> None:
        return


class _Plain:
    """A line for each phase, none for what moves in between."""

    def __init__(self) -> None:
        self._phases: dict[str, str] = {}
        self._said = ""

    def say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._line(text)

    def part(self, title: str, phase: str, done: int = 0, total: int = 0) -> None:
        if self._phases.get(title) != phase:
            self._phases[title] = phase
            self._line(f"{title}: {phase}{f' {output.size(total)}' if total and phase not in _ENDED else ''}")

    def _line(self, text: str) -> None:
        sys.stderr.write(output.plain(text) + "\n")
        sys.stderr.flush()


class Board:
    """What a live display shows: every part with a bar while it moves, and a line for the whole."""

    def __init__(self) -> None:
        self.said = ""
        self.parts: dict[str, Part] = {}
        self._began = time.monotonic()
        self._shared: set[str] = set()

    def say(self, text: str) -> None:
        self.said = text

    def part(self, title: str, phase: str, done: int = 0, total: int = 0) -> None:
        part = self.parts.setdefault(title, Part(title))
        if part.phase != phase:
            part.phase, part.began, part.done_before = phase, time.monotonic(), done
        part.done, part.total = done, total or part.total
        if phase == SHARED:
            self._shared.add(title)
        elif title not in self._shared:
            # What is quick is done before anybody has told how far it is.
            part.arrived = max(part.arrived, done if done or phase == WAITING else part.total)

    def lines(self, height: int) -> list[str]:
        """The display in at most `height` lines. Where parts do not fit, those that have ended give way first."""
        parts = list(self.parts.values())
        room = max(height - 2, 1)
        hidden = 0
        if len(parts) > room:
            shown = sorted(parts, key=lambda part: (part.phase in _ENDED, part.phase == WAITING))[: room - 1]
            hidden = len(parts) - len(shown)
            parts = [part for part in parts if part in shown]
        lines = [_line(part) for part in parts]
        if hidden:
            lines.append(f"… {hidden} more")
        return [*lines, self._whole()]

    def _whole(self) -> str:
        parts = list(self.parts.values())
        ended = sum(part.phase in _ENDED for part in parts)
        shared = sum(part.phase == SHARED for part in parts)
        text = output.plain(self.said)
        if parts:
            text += f"  {ended} of {len(parts)} layers" + (f", {shared} here already" if shared else "")
            arrived = sum(part.arrived for part in parts)
            if arrived:
                rate = arrived / max(time.monotonic() - self._began, 0.1)
                text += f", {output.size(arrived)} at {output.size(int(rate))}/s"
        return text


def _line(part: Part) -> str:
    text = f"{part.title:<12}  {part.phase:<12}"
    if part.phase in _ENDED or not part.done or not part.total:
        return f"{text}  {output.size(part.total) if part.total else ''}".rstrip()
    full = min(part.done, part.total) * _BAR // part.total
    text += f"  {'━' * full}{'╌' * (_BAR - full)}  {output.size(part.done)} of {output.size(part.total)}"
    rate = part.rate()
    return text + (f"  {output.size(int(rate))}/s" if rate else "")


@contextmanager
def _live() -> Iterator[Board]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True, highlight=False, markup=False)
    board = Board()

    def drawn() -> RenderableType:
        lines = board.lines(console.size.height)
        return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))

    with Live(get_renderable=drawn, console=console, refresh_per_second=10, transient=True):
        yield board
