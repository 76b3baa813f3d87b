"""`WWW-Authenticate` and scopes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.registry.challenges import Challenge, parse_challenges
from orlop.registry.scopes import merge


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["Basic"], [Challenge("basic")]),
        (['Basic realm="a, b=c"'], [Challenge("basic", {"realm": "a, b=c"})]),
        (
            ['Bearer realm="https://t/x",service="s",scope="repository:a:pull,push"'],
            [Challenge("bearer", {"realm": "https://t/x", "service": "s", "scope": "repository:a:pull,push"})],
        ),
        (
            ['Basic realm=x, Bearer  realm = "y" , Service=Z', "Negotiate"],
            [
                Challenge("basic", {"realm": "x"}),
                Challenge("bearer", {"realm": "y", "service": "Z"}),
                Challenge("negotiate"),
            ],
        ),
        (["Negotiate abc==, Basic realm=x"], [Challenge("negotiate"), Challenge("basic", {"realm": "x"})]),
        (['Bearer realm="a\\"b\\\\c"'], [Challenge("bearer", {"realm": 'a"b\\c'})]),
        ([", ,Basic realm=x,,"], [Challenge("basic", {"realm": "x"})]),
        (['Bearer realm="x",realm="y"'], [Challenge("bearer", {"realm": "x"})]),
        (['Bearer realm="never ends'], []),
        (['realm="x"'], []),
        (["", "=", '"'], []),
        (["Basic,Bearer realm=z"], [Challenge("basic"), Challenge("bearer", {"realm": "z"})]),
    ],
)
def test_challenges_are_read(fields: list[str], expected: list[Challenge]) -> None:
    assert parse_challenges(fields) == expected


_TOKEN = st.text("abcXYZ0!#-_", min_size=1, max_size=6)
_VALUE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)


@given(st.lists(st.tuples(_TOKEN, st.dictionaries(_TOKEN.map(str.lower), _VALUE, min_size=1, max_size=3)), max_size=4))
def test_what_is_written_by_the_grammar_is_read_again(challenges: list[tuple[str, dict[str, str]]]) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    field = ", ".join(
        f"{scheme} " + ", ".join(f"{name}={quoted(value)}" for name, value in parameters.items())
        for scheme, parameters in challenges
    )
    assert parse_challenges([field]) == [Challenge(scheme.lower(), parameters) for scheme, parameters in challenges]


@given(st.text(max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for challenge in parse_challenges([text, f"Bearer {text}"]):
        assert challenge.scheme.isascii()


def test_scopes_of_one_resource_are_one() -> None:
    assert merge(["repository:a:pull", "repository:a:push,pull", "repository:h:5000/b:pull", "junk", ""]) == (
        "repository:a:pull,push",
        "repository:h:5000/b:pull",
    )
    assert merge(["repository:a:pull repository:b:pull"]) == ("repository:a:pull", "repository:b:pull")
    assert merge([]) == ()
