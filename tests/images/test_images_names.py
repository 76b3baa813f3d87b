"""Image names: docker's grammar and its short forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import InvalidArgument
from orlop.images.names import familiar, normalize, with_tag

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox:latest"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/user/app:2", "docker.io/user/app:2"),
        ("quay.io/team/app", "quay.io/team/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:1", "localhost:5000/app:1"),
        ("registry:5000/a/b/c", "registry:5000/a/b/c:latest"),
        ("Registry/app", "Registry/app:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("[2001:db8::1]/app", "[2001:db8::1]/app:latest"),
        ("app_with__under.dot---dash", "docker.io/library/app_with__under.dot---dash:latest"),
        (f"busybox@sha256:{HEX}", f"docker.io/library/busybox@sha256:{HEX}"),
        (f"busybox:1@sha256:{HEX}", f"docker.io/library/busybox@sha256:{HEX}"),
        ("a:" + "x" * 128, "docker.io/library/a:" + "x" * 128),
        ("host.io", "docker.io/library/host.io:latest"),
        (HEX[:63], f"docker.io/library/{HEX[:63]}:latest"),
    ],
)
def test_a_short_name_stands_for_a_full_one(text: str, full: str) -> None:
    assert normalize(text) == full
    assert normalize(full) == full


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "Busybox", "docker.io/Library/busybox", "busybox:", "busybox:-x", "a:" + "x" * 129, "a//b", "/a", "a/",
        "-host.io/a", "host-.io/a", "host..io/a", "a..b", "a___b", "a._b", "a\n", "a:1\n", "ä", "a:ä", "a@b",
        f"a@sha256:{HEX[:63]}", f"a@sha256:{HEX.upper()}", f"a@md5:{HEX}", "host.io/", "host:port/a", "https://host.io/a",
        "[::1/a", HEX, "a" * 2000, "host.io/" + "a" * 256, "../a", "a/../b", "a\0b",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^image name"):
        normalize(text)


COMPONENTS = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}", fullmatch=True)
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text("aA0.:/@-_[]\n", max_size=40),
    st.builds(
        lambda host, path, tag: host + "/".join(path) + tag,
        st.sampled_from(["", "docker.io/", "index.docker.io/", "localhost/", "h:80/", "q.io/"]),
        st.lists(COMPONENTS, min_size=1, max_size=4),
        st.sampled_from(["", ":1", ":v1.2_3-x", f"@sha256:{HEX}"]),
    ),
)


@given(TEXTS)
def test_a_full_name_stays_as_it_is_and_its_short_form_leads_back(text: str) -> None:
    try:
        full = normalize(text)
    except InvalidArgument:
        return
    assert normalize(full) == full
    assert normalize(familiar(full)) == full
    assert len(familiar(full)) <= len(full)
    host, _, path = full.partition("/")
    assert "." in host or ":" in host or host == "localhost" or host != host.lower()
    assert path == path.strip("/")


@pytest.mark.parametrize(
    ("full", "short"),
    [
        ("docker.io/library/busybox:latest", "busybox:latest"),
        ("docker.io/user/app:1", "user/app:1"),
        ("quay.io/app:1", "quay.io/app:1"),
        ("docker.io/localhost/app:1", "docker.io/localhost/app:1"),
        ("not a name", "not a name"),
    ],
)
def test_the_familiar_form_is_what_docker_shows(full: str, short: str) -> None:
    assert familiar(full) == short


def test_a_tag_joins_a_name_that_has_none() -> None:
    assert with_tag("h:80/app", "1") == "h:80/app:1"
    assert with_tag("app:2", "1") == "app:2"
    assert with_tag("app", "") == "app"
