"""The small parts of HTTP: ranges, links, proxies, redirects, times to wait, URLs in messages."""

from __future__ import annotations

import email.utils
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.core.numbers import parse_uint
from orlop.errors import FailedPrecondition, PermissionDenied
from orlop.registry.failures import message_of
from orlop.registry.hosts import Tls
from orlop.registry.links import next_url
from orlop.registry.proxies import Proxies
from orlop.registry.ranges import ContentRange, requested, uploaded
from orlop.registry.redaction import printable, redact
from orlop.registry.retries import seconds_of
from orlop.registry.tokens import Realm
from orlop.registry.transport import Request, header_values, redirected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes 0-9/100", ContentRange(0, 10, 100)),
        ("bytes 5-5/*", ContentRange(5, 6, None)),
        ("BYTES  5-5/6 ", ContentRange(5, 6, 6)),
    ],
)
def test_a_content_range_is_read(text: str, expected: ContentRange) -> None:
    assert ContentRange.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes",
        "bytes */100",
        "bytes 9-0/100",
        "bytes 0-100/100",
        "bytes -1-5/9",
        "bytes 0-+5/9",
        "bytes 0-1_0/99",
        "bytes 0-٣/9",
        "items 0-1/2",
        "bytes 0-1/2, 3-4/5",
        "bytes 0-99999999999999999999/*",
    ],
)
def test_no_other_content_range_is_taken(text: str) -> None:
    assert ContentRange.parse(text) is None


@given(st.integers(0, 2**62), st.integers(1, 2**20), st.integers(0, 2**20))
def test_ranges_are_written_as_they_are_read(start: int, size: int, rest: int) -> None:
    end = start + size
    assert ContentRange.parse(f"bytes {requested(start, end)[6:]}/{end + rest}") == ContentRange(start, end, end + rest)


@given(st.text(max_size=30))
def test_any_text_as_a_range_is_read_or_not(text: str) -> None:
    found = ContentRange.parse(f"bytes {text}")
    assert found is None or 0 <= found.start < found.end
    assert (uploaded(text) or 0) >= 0
    number = parse_uint(text)
    assert number is None or str(number) == (text.lstrip("0") or "0")


@pytest.mark.parametrize(("text", "expected"), [("0-0", 0), ("0-9", 10), ("bytes=0-9", 10), ("5-9", None), ("", None)])
def test_how_much_an_upload_has(text: str, expected: int | None) -> None:
    assert uploaded(text) == expected


ASKED = "https://h.example/v2/a/referrers/x?n=1"


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ('</v2/a/referrers/x?n=1&last=b>; rel="next"', "https://h.example/v2/a/referrers/x?n=1&last=b"),
        ("<?last=b>; rel=next", "https://h.example/v2/a/referrers/x?last=b"),
        ('<https://h.example:443/y>; title="a, b"; rel="prev next"', "https://h.example:443/y"),
        ('<https://evil.example/y>; rel="next"', ""),
        ('<http://h.example/y>; rel="next"', ""),
        ('<https://h.example:8443/y>; rel="next"', ""),
        ('</a>; rel="prev", </b>; rel="next"', "https://h.example/b"),
        ('</a>; rel="nextish"', ""),
        ('<http://[::1>; rel="next"', ""),
        ("<", ""),
    ],
)
def test_the_next_page_is_of_the_same_host(field: str, expected: str) -> None:
    assert next_url([field], ASKED) == expected


@given(st.text(max_size=100))
def test_any_link_is_read_without_an_error(text: str) -> None:
    assert next_url([text, f"<{text}>; rel=next"], ASKED).startswith(("https://h.example", ""))


@pytest.mark.parametrize(
    ("no_proxy", "address", "direct"),
    [
        ("", "r.example", False),
        ("*", "r.example", True),
        ("r.example", "r.example:5000", True),
        ("example", "r.example", True),
        (".example", "r.example", True),
        ("*.example", "r.example", True),
        (".r.example", "r.example", False),
        ("ample", "r.example", False),
        ("r.example:443", "r.example", True),
        ("r.example:5000", "r.example", False),
        ("10.0.0.0/8", "10.2.3.4:5000", True),
        ("10.0.0.0/8", "11.2.3.4", False),
        ("10.1.1.1", "10.1.1.1", True),
        ("fd00::1", "[fd00::1]:5000", True),
        (" a , R.example ,", "r.EXAMPLE", True),
        ("", "localhost:5000", True),
        ("", "127.3.2.1", True),
        ("", "[::1]:5000", True),
    ],
)
def test_who_is_reached_without_the_proxy(no_proxy: str, address: str, direct: bool) -> None:
    proxies = Proxies.of({"HTTPS_PROXY": "p.example:3128", "no_proxy": no_proxy})
    assert proxies.of_url("https", address) == ("" if direct else "http://p.example:3128")
    assert proxies.of_url("http", address) == ""


def test_a_proxy_by_the_names_that_go_knows() -> None:
    assert Proxies.of({"http_proxy": "http://low:1"}).of_url("http", "r.example") == "http://low:1"
    assert Proxies.of({"http_proxy": "http://low:1", "HTTP_PROXY": "http://up:1"}).http == "http://up:1"
    assert Proxies.of({"HTTP_PROXY": "http://up:1", "REQUEST_METHOD": "GET"}).http == ""
    with pytest.raises(FailedPrecondition, match=r"HTTPS_PROXY is socks5://p\.example:1: only http and https"):
        Proxies.of({"HTTPS_PROXY": "socks5://user:pass@p.example:1"}).of_url("https", "r.example")
    assert Proxies.of({"ALL_PROXY": "socks5://p.example:1"}).of_url("https", "r.example") == ""


PRIVATE = Request(
    "GET", "https://h.example/v2/x", {"Accept": "a"}, (("Authorization", "secret"),), tls=Tls(client=(("c", "k"),))
)


@pytest.mark.parametrize("location", ["/y", "https://h.example/y", "https://H.example:443/y", "?z"])
def test_a_redirect_within_a_host_keeps_what_is_private(location: str) -> None:
    assert redirected(PRIVATE, 307, location).private == PRIVATE.private


@pytest.mark.parametrize("location", ["https://g.example/", "//g.example/y", "https://h.example:8443/y"])
def test_a_redirect_to_another_host_or_port_takes_nothing_private_along(location: str) -> None:
    moved = redirected(PRIVATE, 307, location)
    assert (moved.private, moved.tls.client) == ((), ())
    assert redirected(moved, 307, PRIVATE.url).private == ()


@pytest.mark.parametrize(
    "location",
    [
        "http://h.example/y",
        "http://g.example/y",
        "https://169.254.169.254/latest",
        "https://localhost/y",
        "https://127.0.0.1/y",
        "https://[::1]/y",
        "https://[fe80::1]/y",
        "file:///etc/passwd",
        "http://[::1",
        "https://h.example:99999/",
    ],
)
def test_where_no_redirect_may_lead(location: str) -> None:
    with pytest.raises(FailedPrecondition, match="redirect"):
        redirected(PRIVATE, 302, location)


@pytest.mark.parametrize(
    ("realm", "host", "allowed"),
    [
        ("https://auth.example/t", "https://r.example/v2", True),
        ("http://auth.example/t", "http://r.example/v2", True),
        ("http://auth.example/t", "https://r.example/v2", False),
        ("https://169.254.169.254/t", "https://r.example/v2", False),
        ("https://127.0.0.1/t", "https://r.example/v2", False),
        ("http://127.0.0.1:1/t", "http://127.0.0.1:2/v2", True),
        ("http://127.0.0.1:1/t", "https://127.0.0.1:2/v2", True),
        ("ftp://auth.example/t", "https://r.example/v2", False),
        ("/t", "https://r.example/v2", False),
    ],
)
def test_which_token_servers_a_registry_may_name(realm: str, host: str, allowed: bool) -> None:
    if allowed:
        Realm(realm, "s", host).check()
        return
    with pytest.raises(PermissionDenied, match="token server"):
        Realm(realm, "s", host).check()


def test_how_long_to_wait() -> None:
    assert seconds_of("120") == 120
    assert seconds_of(email.utils.formatdate(time.time() - 60)) == 0
    assert 3500 < (seconds_of(email.utils.formatdate(time.time() + 3600)) or 0) <= 3600
    for text in ("", "soon", "-1", "1_0", "1.5", "9" * 400):
        assert seconds_of(text) is None


def test_urls_are_shown_without_what_they_prove() -> None:
    assert redact("https://u:p@h:1/a?X-Sig=abc&ns=docker.io") == "https://h:1/a?X-Sig=redacted&ns=docker.io"
    assert redact("http://[::1") == "(a URL that is none)"


@given(st.text(max_size=80))
def test_messages_are_one_plain_line(text: str) -> None:
    assert printable(printable(text)) == printable(text)
    assert printable(text).isprintable()
    assert redact(f"https://h/{text}").isprintable()
    assert message_of(text.encode("utf-8", "replace")).isprintable()


def test_what_errors_say() -> None:
    assert message_of(b'{"errors":[{"code":"DENIED","message":"no","detail":{"x":1}}]}') == "DENIED: no"
    assert message_of(b'{"error":"invalid","details":"x"}') == "invalid: x"
    assert message_of(b"plain\nwords") == "plain words"
    assert message_of(b"<html>much</html>") == ""
    assert message_of(b"[" * 100_000) == ""


def test_values_of_one_header_are_one_field() -> None:
    assert header_values([("X-A", "1"), ("x-a", "2"), ("B", "3")]) == (("X-A", "1, 2"), ("B", "3"))
