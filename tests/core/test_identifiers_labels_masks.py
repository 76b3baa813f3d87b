"""Identifiers, labels and the paths of field masks."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.core import fieldpath, identifiers, labels
from orlop.errors import InvalidArgument


@given(st.text(alphabet="aZ09._-é\n /", max_size=80))
def test_an_identifier_is_what_the_published_pattern_says(text):
    allowed = len(text) <= 76 and re.fullmatch(identifiers.PATTERN.strip("^$"), text, re.ASCII) is not None
    try:
        assert identifiers.validate(text) == text
        assert allowed
    except InvalidArgument:
        assert not allowed


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "identifier must not be empty"),
        ("a" * 77, f'identifier "{"a" * 77}" greater than maximum length (76 characters)'),
        ("a\n", f'identifier "a\n" must match {identifiers.PATTERN}'),
        ("a..b", f'identifier "a..b" must match {identifiers.PATTERN}'),
    ],
)
def test_a_malformed_identifier_is_refused_in_the_known_words(text, why):
    with pytest.raises(InvalidArgument) as caught:
        identifiers.validate(text, "container.ID")
    assert str(caught.value) == f"container.ID: {why}: invalid argument"


def test_a_label_may_have_4096_bytes_and_not_one_more():
    labels.validate({"é": "x" * 4094})
    with pytest.raises(InvalidArgument) as caught:
        labels.validate({"k" * 70: "x" * 4027}, "image.Labels")
    assert str(caught.value) == (
        "image.Labels: label key and value length (4097 bytes) greater than maximum size (4096 bytes), "
        f"key: {'k' * 64}: invalid argument"
    )


KEYS = st.text(alphabet="ab./:", max_size=6)
MAPS = st.dictionaries(KEYS, st.text(max_size=3), max_size=5)


@given(MAPS, MAPS, KEYS)
def test_a_mask_of_one_key_changes_that_key_alone(old, new, key):
    expected = dict(old)
    expected[key] = new.get(key, "")
    assert fieldpath.masked(f"labels.{key}", "labels", old, new, "") == expected
    assert fieldpath.masked("labels", "labels", old, new, "") == new
    assert fieldpath.masked(f"label.{key}", "labels", old, new, "") is None
