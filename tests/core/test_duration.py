"""Go's durations and RFC 3339 times, as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.core import duration, rfc3339
from orlop.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("300ms", 300_000_000),
        ("1.5h", 5_400_000_000_000),
        ("-1m30s", -90_000_000_000),
        ("1h2m3.5s", 3_723_500_000_000),
        (".5s", 500_000_000),
        ("10µs", 10_000),
    ],
)
def test_a_duration_is_read_as_go_reads_it(text: str, nanoseconds: int) -> None:
    assert duration.parse(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "1", "s", "1x", "1 s", "1s ", "--1s", "1e3s", "١s", "9999999999h", "1_0s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid duration"):
        duration.parse(text)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (100_000_000, "100ms"),
        (1_500_000, "1.5ms"),
        (5_000_000_000, "5s"),
        (60_000_000_000, "1m0s"),
        (14_400_000_000_000, "4h0m0s"),
        (90_500_000_000, "1m30.5s"),
    ],
)
def test_a_duration_prints_as_go_prints_it(nanoseconds: int, text: str) -> None:
    assert duration.render(nanoseconds) == text


@given(st.integers(0, 10**15))
def test_a_printed_duration_reads_back(nanoseconds: int) -> None:
    assert duration.parse(duration.render(nanoseconds)) == nanoseconds


@given(st.integers(-62_135_596_800 * 10**9, 253_402_300_799 * 10**9))
def test_a_printed_time_reads_back_to_the_nanosecond(nanoseconds: int) -> None:
    assert rfc3339.parse(rfc3339.render(nanoseconds)) == nanoseconds


def test_an_offset_is_taken_into_account() -> None:
    assert rfc3339.parse("1970-01-01T01:00:00+01:00") == 0
    assert rfc3339.parse("1969-12-31T23:00:00.5-01:00") == 500_000_000


@pytest.mark.parametrize("text", ["", "1970-01-01", "1970-13-01T00:00:00Z", "1970-01-01T00:00:00", "x"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        rfc3339.parse(text)
