"""Option and mount table parsing, without a kernel."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.mounts import mountinfo, options
from orlop.mounts import syscalls as sc

LINE = b"36 35 98:0 /mnt1 /a\\040b\\134\\012 rw,noatime shared:1 master:2 - ext4 /dev/root rw,errors=continue"


def test_flags_data_and_propagation_are_told_apart() -> None:
    parsed = options.parse(["rbind", "ro", "nosuid", "rslave", "size=1m", "defaults"])
    assert parsed.flags == sc.MS_BIND | sc.MS_REC | sc.MS_RDONLY | sc.MS_NOSUID
    assert parsed.propagation == sc.MS_SLAVE | sc.MS_REC
    assert parsed.data == ("size=1m",)


def test_the_later_of_two_contrary_options_holds() -> None:
    assert options.parse(["ro", "rw"]).flags == 0
    assert options.parse(["rw", "ro"]).flags == sc.MS_RDONLY
    assert options.parse(["relatime", "noatime"]).flags == sc.MS_NOATIME


def test_a_read_only_overlay_mounts_its_upper_as_nearest_lower() -> None:
    given_options = ("workdir=/w", "upperdir=/u:1", "lowerdir=/b:/a", "volatile", "index=off")
    assert options.read_only(given_options, "overlay") == ("lowerdir=/u\\:1:/b:/a", "index=off")
    assert options.read_only(("rw", "rbind"), "bind") == ("rbind", "ro")


def test_data_only_lowers_stand_behind_two_colons() -> None:
    assert options.split_lowers("/a:/b::/d1::/d2") == (["/a", "/b"], ["/d1", "/d2"])


@given(st.lists(st.text(min_size=1), min_size=1))
def test_escaped_lowers_split_into_what_they_were(paths: list[str]) -> None:
    joined = ":".join(options.escape_lower(path) for path in paths)
    assert options.split_lowers(joined) == (paths, [])


def test_a_line_of_the_mount_table_is_read_whole() -> None:
    (entry,) = mountinfo.parse(LINE + b"\n")
    assert entry.point == b"/a b\\\n"
    assert entry.device == (98, 0)
    assert entry.is_shared
    assert (entry.type, entry.source) == ("ext4", b"/dev/root")
    assert entry.super_options == ("rw", "errors=continue")


def test_an_empty_source_keeps_the_fields_in_place() -> None:
    (entry,) = mountinfo.parse(b"1 1 0:1 / /x rw - tmpfs  rw")
    assert (entry.type, entry.source, entry.super_options) == ("tmpfs", b"", ("rw",))


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.7])
def test_a_truncated_line_is_refused_by_name(cut: float) -> None:
    with pytest.raises(ValueError, match="mount table"):
        mountinfo.parse(LINE[: int(len(LINE) * cut)])


def test_a_path_lies_on_the_last_mount_of_its_nearest_point() -> None:
    table = b"1 0 0:1 / / rw - a a rw\n2 1 0:2 / /x rw - b b rw\n3 2 0:3 / /x rw - c c rw\n4 1 0:4 / /xy rw - d d rw\n"
    entries = mountinfo.parse(table)
    found = mountinfo.of_path(b"/x/y", entries)
    assert found is not None
    assert found.id == 3
    assert mountinfo.of_path(b"/xyz", entries) == entries[0]
