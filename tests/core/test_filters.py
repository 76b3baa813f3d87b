"""The filter language: what matches, what is refused and how."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.core import filters
from orlop.errors import InvalidArgument

LABELS = {"containerd.io/gc.root": "yes", "a.b": "c", "plain": "x y"}


def adaptor(path):
    if path[0] == "labels":
        return filters.labels_field(path[1:], LABELS)
    values = {"id": "web-1", "image": "docker.io/library/redis:7", "topic": "/tasks/exit"}
    return values.get(path[0], ""), path[0] in values


def matches(*texts):
    return filters.parse(texts)(adaptor)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "id",
        "id==web-1",
        "id!=other",
        "missing!=x",
        "id==web-1,image",
        "id==web-1, image==docker.io/library/redis:7",
        'labels."containerd.io/gc.root"==yes',
        "labels.a.b==c",
        'labels.plain=="x y"',
        "id~=^web",
        "id~=b-",
        "missing~=^$",
        "topic~=|^/tasks/|",
        r"topic~=/^\/tasks/",
        'id~="(?i)^WEB"',
        r'id=="\x77eb-1"',
        r'id=="\167eb-1"',
        r'id=="\u0077eb-1"',
    ],
)
def test_a_filter_matches(text):
    assert matches(text)


@pytest.mark.parametrize(
    "text",
    ["missing", "id==web", "id!=web-1", "labels", "labels.containerd.io", "id~=^eb", "missing==", "id==web-1,missing"],
)
def test_a_filter_does_not_match(text):
    if text.endswith("=="):
        text += '""'
    assert not matches(text)


def test_no_filter_matches_and_one_of_several_is_enough():
    assert matches()
    assert matches("missing", "id==web-1")
    assert matches("missing", "")
    assert not matches("missing", "id==other")


def test_a_bad_expression_matches_nothing_and_is_no_error():
    assert not matches("id~=[")
    assert not matches("missing~=(?P<")


def test_an_expression_takes_time_linear_in_the_value():
    assert not filters.parse(["id~=^(a+)+$"])(lambda path: ("a" * 100_000 + "b", True))


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("id=~x", '[id >|=|< ~x]: unsupported operator "=~"'),
        ("id x", '[id  >|x|< ]: expected an operator ("=="|"!="|"~=")'),
        ("id==", "[id==]: expected value or quoted"),
        (".id", "[ >|.|< id]: expected field or quoted"),
        ("id==a,", "[id==a,]: expected field or quoted"),
        ("id==a b", "[id==a >| |< b]: unexpected input:  "),
        ('id=="a', '[id== >|"|< a]: quoted literal not terminated'),
        (r'id=="\d"', r'[id== >|"|< \d"]: illegal escape sequence'),
        (r'id=="\777"', r'[id== >|"|< \777"]: unquoting failed: quote syntax error'),
        ("id==/a/", "[id== >|/|< a/]: invalid quote encountered"),
    ],
)
def test_a_malformed_filter_is_refused_with_its_place(text, refusal):
    with pytest.raises(InvalidArgument) as caught:
        filters.parse([text])
    assert str(caught.value) == f"filters: parse error: {refusal}: invalid argument"


def test_filters_beyond_the_limit_are_refused():
    with pytest.raises(InvalidArgument, match="longer than"):
        filters.parse(["id", "a" * filters.MAX_LENGTH])


@given(st.text() | st.text(alphabet='abx0._,=!~"/|\\ \nu', max_size=20))
def test_parsing_any_text_gives_a_filter_or_invalid_argument(text):
    try:
        verdict = filters.parse([text])(adaptor)
    except InvalidArgument as error:
        assert str(error).startswith("filters: parse error: [")  # noqa: PT017
    else:
        assert isinstance(verdict, bool)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\ufffd\n"), min_size=1))
def test_a_quoted_value_is_found_as_it_was(value):
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    assert filters.parse([f'id=="{quoted}"'])(lambda path: (value, True))
    assert not filters.parse([f'id!="{quoted}"'])(lambda path: (value, True))
