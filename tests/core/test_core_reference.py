"""Full references."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.core.reference import Reference, split_port
from orlop.errors import InvalidArgument

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("docker.io/library/busybox:1.36", Reference("docker.io", "library/busybox", "1.36")),
        ("localhost/x", Reference("localhost", "x")),
        ("localhost:5000/x:Y_z.1-2", Reference("localhost:5000", "x", "Y_z.1-2")),
        (f"[::1]:5000/a/b@{DIGEST}", Reference("[::1]:5000", "a/b", "", DIGEST)),
        (f"h.example:443/a/b:t@{DIGEST}", Reference("h.example:443", "a/b", "t", DIGEST)),
        ("10.0.0.1/a__b/c-d/e--f.g", Reference("10.0.0.1", "a__b/c-d/e--f.g")),
        ("under_score/x", Reference("under_score", "x")),
    ],
)
def test_parts_are_told_apart(text: str, expected: Reference) -> None:
    assert Reference.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "busybox",
        "/x",
        "h/",
        "h/X",
        "h/../x",
        "h/a/../b",
        "h/a//b",
        "http://h/x",
        "h/x:",
        "h/x@",
        "h/x:a:b",
        "h/x:a\n",
        "h/x\n",
        "h:99999/x",
        "h:/x",
        "h:1_0/x",
        "h/x@sha256:abc",
        "h/x@sha256:../../etc",
        "h/x?ns=y",
        "h/x#y",
        "user@h/x",
        "h/x:" + "a" * 129,
        "h/é",
        "[::1/x",
        "h/" + "a" * 2000,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid reference"):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("host", "name", "port"),
    [("a", "a", ""), ("a:1", "a", "1"), ("[::1]", "[::1]", ""), ("[::1]:5", "[::1]", "5")],
)
def test_a_port_is_split_off(host: str, name: str, port: str) -> None:
    assert split_port(host) == (name, port)


def test_label_names_have_no_port() -> None:
    assert Reference.parse("[::1]:5000/x").host_name == "::1"
    assert Reference.parse("127.0.0.1:5000/x").host_name == "127.0.0.1"


@given(st.text(alphabet="aZ0.:/@[]-_%?# \n" + "é", max_size=40))
def test_what_parses_prints_itself(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidArgument:
        return
    assert str(reference) == text
    assert Reference.parse(str(reference)) == reference
