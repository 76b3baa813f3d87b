"""What a display shows: lines where a phase begins, or a board that fits its terminal."""

from __future__ import annotations

import re

import pytest

from orlop.cli import progress
from orlop.cli.progress import DONE, SHARED, WAITING, Board


def test_elsewhere_than_on_a_terminal_a_line_is_written_where_a_phase_begins(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with progress.display(quiet=False) as display:
        display.say("pulling x")
        display.say("pulling x")
        display.part("abc", WAITING, 0, 2048)
        for done in (0, 1000, 2000):
            display.part("abc", "downloading", done, 2048)
        display.part("def\x1b[31m", SHARED, 5, 5)
        display.part("abc", DONE, 2048, 2048)
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "pulling x",
        "abc: waiting 2.0 KiB",
        "abc: downloading 2.0 KiB",
        "def\\x1b[31m: here already",
        "abc: done",
    ]


def test_quiet_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with progress.display(quiet=True) as display:
        display.say("pulling x")
        display.part("abc", WAITING)
    assert capfd.readouterr() == ("", "")


def test_a_board_shows_each_part_and_the_whole() -> None:
    board = Board()
    board.say("pulling x")
    board.part("aaaaaaaaaaaa", DONE, 10, 10)
    board.part("bbbbbbbbbbbb", "downloading", 512, 2048)
    board.part("cccccccccccc", SHARED, 0, 3072)
    board.part("dddddddddddd", WAITING, 0, 1024)
    *lines, whole = board.lines(24)
    assert re.fullmatch(r"pulling x  2 of 4 layers, 1 here already, 522 B at [0-9.]+ \w+/s", whole)
    assert lines == [
        "aaaaaaaaaaaa  done          10 B",
        "bbbbbbbbbbbb  downloading   ━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌  512 B of 2.0 KiB",
        "cccccccccccc  here already  3.0 KiB",
        "dddddddddddd  waiting       1.0 KiB",
    ]


def test_what_has_ended_gives_way_where_a_terminal_is_low() -> None:
    board = Board()
    for number in range(40):
        board.part(f"{number:012}", DONE if number < 30 else "downloading" if number < 33 else WAITING, 0, 10)
    lines = board.lines(8)
    assert len(lines) <= 8
    assert [line.split()[1] for line in lines[:5]] == ["downloading"] * 3 + [WAITING] * 2
    assert lines[5] == "… 35 more"
    assert "30 of 40 layers" in lines[6]


def test_what_is_quick_counts_as_arrived_and_what_was_here_does_not() -> None:
    board = Board()
    for phase in (WAITING, "extracting", DONE):
        board.part("quick", phase, 0, 1000)
    for phase in (WAITING, SHARED, "extracting", DONE):
        board.part("shared", phase, 0, 1000)
    board.part("coming", WAITING, 0, 1000)
    assert {part.title: part.arrived for part in board.parts.values()} == {"quick": 1000, "shared": 0, "coming": 0}
    assert board.lines(9)[0] == "quick         done          1000 B"


def test_a_rate_is_of_the_phase_that_is_on() -> None:
    board = Board()
    board.part("a", "downloading", 1000, 10_000)
    part = board.parts["a"]
    part.began -= 2
    board.part("a", "downloading", 5000, 10_000)
    assert 1000 < part.rate() <= 2000
    board.part("a", "extracting", 0, 10_000)
    assert part.rate() == 0
