"""`hosts.toml`, directories of certificates, and the hosts that follow from them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.registry.hosts import Capability, Host, Tls, own_host
from orlop.registry.hosts_file import hosts_of, parse
from orlop.registry.tls import Contexts


def written(directory: Path, text: str, host: str = "r.example") -> list[Host]:
    (directory / host).mkdir(exist_ok=True)
    (directory / host / "hosts.toml").write_text(text)
    return hosts_of(host, [str(directory)])


@pytest.mark.parametrize(
    ("host", "scheme", "expected"),
    [
        ("docker.io", "", ("https", "registry-1.docker.io", False)),
        ("r.example", "", ("https", "r.example", False)),
        ("r.example:5000", "", ("https", "r.example:5000", False)),
        ("r.example", "http", ("http", "r.example", False)),
        ("localhost", "", ("https", "localhost", False)),
        ("localhost:443", "", ("https", "localhost:443", False)),
        ("localhost:80", "", ("http", "localhost:80", False)),
        ("127.0.0.1:5000", "", ("https", "127.0.0.1:5000", True)),
        ("127.9.9.9:5000", "", ("https", "127.9.9.9:5000", True)),
        ("[::1]:5000", "", ("https", "[::1]:5000", True)),
        ("localhost:5000", "http", ("http", "localhost:5000", False)),
        ("localhost:5000", "https", ("https", "localhost:5000", False)),
    ],
)
def test_the_scheme_of_a_host_without_a_file(host: str, scheme: str, expected: tuple[str, str, bool]) -> None:
    (found,) = hosts_of(host, [], scheme)
    assert (found.scheme, found.address, found.http_fallback) == expected
    assert found.namespace == ""
    assert found.capabilities == Capability.ALL


def test_a_whole_file(tmp_path: Path) -> None:
    first, second, server = written(
        tmp_path,
        """
server = "https://upstream.example"
capabilities = ["pull"]
ca = "root.pem"
[host."https://mirror.example/sub/path"]
  capabilities = ["Pull", "RESOLVE"]
  ca = ["a.pem", "/abs/b.pem"]
  client = [["c.pem", "k.pem"], ["both.pem", ""], "one.pem"]
  skip_verify = true
  dial_timeout = "1m30s"
  [host."https://mirror.example/sub/path".header]
    X-One = "1"
    X-Many = ["2", "3"]
[host."http://second.example:8080/v2/custom"]
  override_path = true
  client = "pair.pem"
""",
    )
    base = str(tmp_path / "r.example")
    assert first == Host(
        "https",
        "mirror.example",
        "/sub/path/v2",
        Capability.PULL | Capability.RESOLVE,
        Tls(
            (f"{base}/a.pem", "/abs/b.pem"),
            ((f"{base}/c.pem", f"{base}/k.pem"), (f"{base}/both.pem", ""), (f"{base}/one.pem", "")),
            True,
        ),
        (("X-One", "1"), ("X-Many", "2"), ("X-Many", "3")),
        90.0,
        "r.example",
    )
    # A client certificate for http: https is tried first.
    assert (second.url, second.http_fallback) == ("https://second.example:8080/v2/custom", True)
    assert second.tls.client == ((f"{base}/pair.pem", ""),)
    assert (server.url, server.capabilities, server.tls.ca) == (
        "https://upstream.example/v2",
        Capability.PULL,
        (f"{base}/root.pem",),
    )


def test_without_a_server_the_own_host_comes_last_with_all_it_can(tmp_path: Path) -> None:
    mirror, own = written(tmp_path, 'capabilities = ["pull"]\n[host."mirror.example"]\n')
    assert mirror.url == "https://mirror.example/v2"
    assert (own.url, own.capabilities, own.namespace) == ("https://r.example/v2", Capability.ALL, "")


def test_docker_hub_is_no_stand_in_for_itself(tmp_path: Path) -> None:
    (server,) = written(tmp_path, 'server = "https://registry-1.docker.io"', "docker.io")
    assert server.namespace == ""


@pytest.mark.parametrize("directory", ["r.example_5000_", "r.example:5000", "_default"])
def test_directories_of_a_host_with_a_port(tmp_path: Path, directory: str) -> None:
    (tmp_path / directory).mkdir()
    (tmp_path / directory / "hosts.toml").write_text('server = "https://found.example"')
    (found,) = hosts_of("r.example:5000", [str(tmp_path / "none"), str(tmp_path)])
    assert found.address == "found.example"


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_certificates_without_a_file_are_taken_by_their_names(tmp_path: Path, text: str | None) -> None:
    directory = tmp_path / "r.example"
    directory.mkdir()
    for name in ("b.crt", "a.crt", "x.cert", "x.key", "y.cert", "z.key", "other"):
        (directory / name).write_text("")
    if text is not None:
        (directory / "hosts.toml").write_text(text)
    (own,) = hosts_of("r.example", [str(tmp_path)])
    assert own.tls == Tls(
        (f"{directory}/a.crt", f"{directory}/b.crt"),
        ((f"{directory}/x.cert", f"{directory}/x.key"), (f"{directory}/y.cert", "")),
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("server = 1", "server must be a string"),
        ('server = "ftp://x"', "no http or https URL"),
        ('server = "https://"', "no http or https URL"),
        ('server = "http://[::1"', "no http or https URL"),
        ('server = "https://user@h"', "no http or https URL"),
        ("host = 1", "host must be a table"),
        ("[host]\nx = 1", 'host."x" must be a table'),
        ('[host."h"]\ncapabilities = ["fly"]', r'host."h".capabilities must be of pull, resolve, push, referrers'),
        ('capabilities = "pull"', "capabilities must be a list of strings"),
        ("ca = 1", "ca must be a file name"),
        ("ca = [1]", "ca must be a file name"),
        ("client = [[1, 2]]", "client must be"),
        ('client = [["a"]]', "client must be"),
        ("client = 1", "client must be"),
        ('skip_verify = "yes"', "skip_verify must be true or false"),
        ('override_path = 1\nserver = "h"', "override_path must be true or false"),
        ("header = 1", "header must be a table"),
        ("[header]\nx = 1", "header.x must be a string"),
        ('[header]\nx = "a\\r\\nb: c"', "header.x must be a string without line breaks"),
        ('[header]\n"a b" = "c"', "header.a b must be"),
        ('dial_timeout = "soon"', "dial_timeout must be a duration"),
        ('dial_timeout = "-1s"', "dial_timeout must be a duration"),
        ("not toml", "line 1"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        written(tmp_path, text)
    assert named in str(caught.value)
    assert f"{tmp_path}/r.example/hosts.toml" in str(caught.value)


def test_an_unknown_key_is_named_with_the_nearest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (own,) = written(tmp_path, "skip_verfy = true")
    assert own.tls.skip_verify is None
    assert "unknown key skip_verfy (did you mean skip_verify?)" in caplog.text


def test_a_host_that_is_no_name_is_no_directory(tmp_path: Path) -> None:
    for host in ("..", "a/b", "", "a\0b", "r.example:5000:1"):
        with pytest.raises(InvalidArgument):
            hosts_of(host, [str(tmp_path)])


def test_a_file_of_certificates_that_has_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("nothing")
    for tls in (Tls(ca=(f"{tmp_path}/a.pem",)), Tls(client=((f"{tmp_path}/a.pem", ""),)), Tls(ca=("/none/x.pem",))):
        with pytest.raises(FailedPrecondition, match=r"\.pem: no certificate"):
            Contexts().of(tls)


_VALUES = st.recursive(
    st.one_of(st.text(max_size=8), st.booleans(), st.integers(), st.floats()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=5,
)
_KEYS = st.sampled_from(
    ["server", "host", "capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout", "x"]
)


@given(st.dictionaries(_KEYS, _VALUES, max_size=4), st.dictionaries(_KEYS, _VALUES, max_size=4))
def test_a_document_of_any_shape_is_read_or_refused(root: dict[str, object], section: dict[str, object]) -> None:
    own = own_host("r.example", "")
    try:
        hosts = parse({**root, "host": {"https://m.example": section}}, "/d/hosts.toml", own)
    except InvalidArgument:
        return
    assert hosts[0].address == "m.example"
