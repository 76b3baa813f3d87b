"""Mounts against the real kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.core.mount import Mount
from orlop.errors import Unimplemented, Unknown
from orlop.mounts import mountinfo, overlay
from orlop.mounts.mount import MountError, mount_all, unmount, unmount_all
from orlop.mounts.temporary import TemporaryMounts

pytestmark = pytest.mark.root


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory whose mounts are undone after the test."""
    target = tmp_path / "target"
    target.mkdir()
    yield target
    unmount_all(tmp_path)


def mounted_below(directory: Path) -> list[mountinfo.MountEntry]:
    return [entry for entry in mountinfo.read() if entry.lies_below(os.fsencode(directory))]


def bind(source: Path, *options: str, target: str = "") -> Mount:
    return Mount("bind", str(source), ("rbind", *options), target)


def deep_overlay(root: Path, count: int) -> Mount:
    lowers = []
    for number in range(count):
        lower = root / ("layer-with-a-rather-long-name-" + "x" * 20) / str(number) / "fs"
        lower.mkdir(parents=True)
        (lower / f"from-{number}").touch()
        lowers.append(str(lower))
    (root / "upper").mkdir()
    (root / "work").mkdir()
    options = (f"workdir={root}/work", f"upperdir={root}/upper", "lowerdir=" + ":".join(reversed(lowers)), "index=off")
    return Mount("overlay", "overlay", options)


def test_a_bind_mount_shows_its_source_and_unmounts(place: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("x")
    mount_all([bind(source, "rw")], place)
    assert (place / "file").read_text() == "x"
    unmount(place)
    assert mounted_below(place) == []


def test_a_read_only_bind_mount_refuses_writes(place: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    mount_all([bind(source, "ro")], place)
    with pytest.raises(OSError) as caught:
        (place / "file").touch()
    assert caught.value.errno == errno.EROFS
    (source / "file").touch()


def test_a_bind_keeps_the_protecting_flags_of_its_source_unless_told_otherwise(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    mount_all([Mount("tmpfs", "tmpfs", ("nosuid", "nodev", "size=64k"))], place)
    mount_all([bind(place, "ro", "dev")], other)
    (entry,) = mounted_below(other)
    assert {"ro", "nosuid"} <= set(entry.options)
    assert "nodev" not in entry.options


def test_propagation_options_change_the_new_mount(place: Path) -> None:
    mount_all([Mount("tmpfs", "tmpfs", ("shared", "size=64k"))], place)
    assert mounted_below(place)[0].is_shared
    mount_all([Mount("", "", ("rprivate", "remount", "bind"))], place)
    assert not mounted_below(place)[0].is_shared


def test_a_missing_source_is_told_in_the_words_clients_know(place: Path) -> None:
    with pytest.raises(MountError) as caught:
        mount_all([bind(Path("/nonex"))], place)
    assert str(caught.value) == (
        f'mount source: "/nonex", target: "{place}", fstype: bind, flags: 20480, data: "", '
        "err: no such file or directory"
    )
    assert caught.value.errno == errno.ENOENT


def test_mount_all_leaves_nothing_when_one_of_them_fails(place: Path, tmp_path: Path) -> None:
    with pytest.raises(MountError):
        mount_all([bind(tmp_path), bind(Path("/nonex"))], place)
    assert mounted_below(place) == []


def test_a_target_inside_is_resolved_within_the_root(place: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "root"
    (root / "outside").mkdir(parents=True)
    (root / "way").symlink_to("/../../outside")
    mount_all([bind(root), Mount("tmpfs", "tmpfs", ("size=64k",), "way")], place)
    assert [os.fsdecode(entry.point) for entry in mounted_below(place)] == [str(place), str(place / "outside")]
    assert mounted_below(outside) == []


@pytest.mark.parametrize("option", ["uidmap=0:1000:1", "gidmap=0:1000:1"])
def test_what_cannot_be_done_is_refused_before_anything_is_mounted(place: Path, option: str) -> None:
    with pytest.raises(Unimplemented, match=option):
        mount_all([bind(place, option)], place)
    assert mounted_below(place) == []


def test_options_of_the_mount_manager_are_refused(place: Path) -> None:
    with pytest.raises(Unknown, match="was not consumed by the mount manager"):
        mount_all([bind(place, "X-containerd.x=1")], place)


def test_an_overlay_of_more_than_a_page_of_options_mounts(place: Path, tmp_path: Path) -> None:
    mount_all([deep_overlay(tmp_path / "store", 200)], place)
    assert {f"from-{number}" for number in range(200)} <= set(os.listdir(place))
    (place / "new").touch()
    assert (tmp_path / "store/upper/new").exists()


def test_a_kernel_without_the_new_calls_mounts_by_relative_paths(place: Path, tmp_path: Path) -> None:
    mount = deep_overlay(tmp_path / "store", 100)
    before = os.getcwd()
    overlay.mount_relative(mount.source, str(place), 0, mount.options)
    assert len(os.listdir(place)) == 100
    assert os.getcwd() == before


def test_unmounting_what_is_not_mounted_is_fine(place: Path) -> None:
    unmount(place)
    unmount(place / "missing")


def test_a_mount_in_use_is_refused_and_can_be_detached(place: Path) -> None:
    mount_all([Mount("tmpfs", "tmpfs", ("size=64k",))], place)
    with (place / "open").open("w"):
        with pytest.raises(MountError, match="device or resource busy"):
            unmount(place)
        unmount(place, detach=True)
    assert mounted_below(place) == []


def test_unmount_all_takes_stacked_and_nested_mounts_with_hostile_names(place: Path) -> None:
    for _ in range(3):
        mount_all([Mount("tmpfs", "tmp fs\n", ("size=64k",))], place)
    inner = os.path.join(os.fsencode(place), b"a b\t\\\n#\xff")
    os.mkdir(inner)
    mount_all([Mount("tmpfs", "tmpfs", ("size=64k",))], os.fsdecode(inner))
    assert inner in [entry.point for entry in mounted_below(place)]
    unmount_all(place)
    assert mounted_below(place) == []


def test_temporary_mounts_are_undone_whatever_happens(tmp_path: Path) -> None:
    temporary = TemporaryMounts(tmp_path / "tmpmounts")
    with contextlib.suppress(KeyError), temporary.mounted([Mount("tmpfs", "tmpfs", ("size=64k",))]) as root:
        assert Path(root).name.startswith("containerd-mount")
        raise KeyError
    assert os.listdir(tmp_path / "tmpmounts") == []
    assert stat.S_IMODE((tmp_path / "tmpmounts").stat().st_mode) == 0o700
    temporary.close()


def test_a_temporary_mount_that_fails_names_its_directory(tmp_path: Path) -> None:
    temporary = TemporaryMounts(tmp_path)
    with pytest.raises(MountError, match=f"^failed to mount {tmp_path}/containerd-mount.*: mount source: "):
        with temporary.mounted([bind(Path("/nonex"))]):
            pass
    assert os.listdir(tmp_path) == []
    temporary.close()


def test_a_read_only_temporary_mount_of_an_overlay_has_its_upper_as_a_lower(tmp_path: Path) -> None:
    store = tmp_path / "store"
    mount = deep_overlay(store, 2)
    (store / "upper/changed").touch()
    temporary = TemporaryMounts(tmp_path / "tmpmounts")
    with temporary.mounted([mount], readonly=True) as root:
        assert set(os.listdir(root)) == {"changed", "from-0", "from-1"}
        with pytest.raises(OSError) as caught:
            Path(root, "new").touch()
    assert caught.value.errno == errno.EROFS
    temporary.close()


def test_leftovers_of_a_killed_daemon_are_cleaned_and_foreign_files_stay(tmp_path: Path) -> None:
    left = tmp_path / "containerd-mount1"
    left.mkdir()
    mount_all([Mount("tmpfs", "tmpfs", ("size=64k",))], left)
    (left / "file").touch()
    kept = tmp_path / "containerd-mount2"
    kept.mkdir()
    (kept / "precious").touch()
    TemporaryMounts(tmp_path).cleanup()
    assert mounted_below(tmp_path) == []
    assert os.listdir(tmp_path) == ["containerd-mount2"]
    assert (kept / "precious").exists()


def test_temporary_mounts_do_not_spread_from_a_shared_parent(place: Path) -> None:
    mount_all([Mount("tmpfs", "tmpfs", ("size=64k", "shared"))], place)
    temporary = TemporaryMounts(place / "tmpmounts")
    with temporary.mounted([Mount("tmpfs", "tmpfs", ("size=64k",))]) as root:
        (entry,) = mounted_below(Path(root))
        assert not entry.is_shared
    temporary.close()
    assert [entry.point for entry in mounted_below(place)] == [os.fsencode(place)]
