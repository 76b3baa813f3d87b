from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import InvalidArgument, NotFound, OrlopError
from orlop.oci.user import MAX_ID, User, read_within, resolve, resolve_with

HOSTILE = [
    "2147483648", "4294967295", "4294967296", "-1", "1e3", "0x0", " 0", "+0", "١", "1_0", "9" * 20, "0 ", "0b0", "²",
    "00000000000000004294967296",
]  # fmt: skip

PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"
GROUP = b"root:x:0:\napp:x:1000:\naudio:x:29:app,other\nstaff:x:50:app\n"


def image(passwd: bytes = PASSWD, group: bytes = GROUP):  # type: ignore[no-untyped-def]
    return lambda path: {"etc/passwd": passwd, "etc/group": group}[path]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_resembles_a_number_out_of_range_is_never_root(text: str) -> None:
    poisoned = image(f"{text}:x:0:0::/root:/bin/sh\n".encode(), f"{text}:x:0:\n".encode())
    with pytest.raises(InvalidArgument):
        resolve_with(text, poisoned)
    with pytest.raises(InvalidArgument):
        resolve_with(f"1000:{text}", poisoned)


@given(st.text(max_size=24))
def test_no_text_becomes_root_unless_it_is_a_zero_or_the_images_name_for_it(text: str) -> None:
    try:
        user = resolve_with(text, image())
    except OrlopError:
        return
    name = text.partition(":")[0]
    assert user.uid != 0 or name in ("", "root") or set(name) == {"0"}
    assert 0 <= user.uid <= MAX_ID
    assert 0 <= user.gid <= MAX_ID


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, (0,), "/root")),
        ("app", User(1000, 1000, (29, 50, 1000), "/home/app")),
        ("1000", User(1000, 1000, (29, 50, 1000), "/home/app")),
        ("app:audio", User(1000, 29, (29,), "/home/app")),
        ("1000:2000", User(1000, 2000, (2000,), "/home/app")),
        ("4242", User(4242, 0, (0,), "/")),
        ("2147483647:2147483647", User(MAX_ID, MAX_ID, (MAX_ID,), "/")),
    ],
)
def test_a_user_has_its_groups_and_always_the_primary_one(text: str, user: User) -> None:
    assert resolve_with(text, image()) == user


def test_names_that_the_image_does_not_have_are_named() -> None:
    with pytest.raises(NotFound, match='user "nobody"'):
        resolve_with("nobody", image())
    with pytest.raises(NotFound, match='group "wheel"'):
        resolve_with("app:wheel", image())


def test_a_link_is_followed_inside_the_image_only(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store/passwd").write_bytes(PASSWD)
    (tmp_path / "etc/passwd").symlink_to("/store/passwd")
    assert resolve("app", tmp_path).uid == 1000
    (tmp_path / "etc/group").symlink_to("/../../../../../../etc/group-outside")
    assert read_within(tmp_path, "etc/group") == b""


@pytest.mark.parametrize("kind", ["fifo", "directory", "loop"])
def test_a_passwd_that_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    (tmp_path / "etc").mkdir()
    passwd = tmp_path / "etc/passwd"
    if kind == "fifo":
        os.mkfifo(passwd)
    elif kind == "directory":
        passwd.mkdir()
    else:
        passwd.symlink_to("passwd")
    with pytest.raises(InvalidArgument, match="/etc/passwd of the image"):
        resolve("app", tmp_path)


def test_a_passwd_is_read_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    passwd = tmp_path / "etc/passwd"
    with passwd.open("wb") as file:
        file.write(PASSWD)
        file.truncate(10 << 20)
    assert resolve("app", tmp_path).uid == 1000
    with passwd.open("ab") as file:
        file.truncate(2 << 30)
    with pytest.raises(InvalidArgument, match="longer than 10485760 bytes"):
        resolve("app", tmp_path)
