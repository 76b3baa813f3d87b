"""Id-mapped root file systems, with the real kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.api.types.mount_pb2 import Mount
from orlop.errors import InvalidArgument, OrlopError
from orlop.shim import idmap, rootfs

pytestmark = pytest.mark.root

MAPPED = ["uidmap=0:100000:1000", "gidmap=0:200000:1000"]


@pytest.fixture(autouse=True)
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The processes that were forked; they are reaped afterwards, as a shim's reaper does."""
    made: list[int] = []
    fork = os.fork

    def noted() -> int:
        pid = fork()
        made.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", noted)
    yield made
    for pid in made:
        os.waitpid(pid, 0)


@pytest.fixture
def root(tmp_path: Path, children: list[int]) -> Iterator[Path]:
    probe = tmp_path / "probe"
    probe.mkdir()
    try:
        idmap.probe(str(probe))
    except (OSError, OrlopError) as error:
        pytest.skip(f"no id-mapped mounts here: {error}")
    target = tmp_path / "rootfs"
    target.mkdir()
    yield target
    rootfs.unmount_all(str(target))


def mounts(point: Path) -> int:
    return Path("/proc/self/mountinfo").read_text().count(f" {point}")


def layer(path: Path, name: str, owner: int = 0) -> Path:
    path.mkdir()
    (path / name).write_text(name)
    os.chown(path / name, owner, owner)
    return path


def test_lower_directories_are_mapped_and_the_upper_one_is_not(tmp_path: Path, root: Path) -> None:
    lowers = [layer(tmp_path / "one", "a"), layer(tmp_path / "two", "b", 5), layer(tmp_path / "odd:name", "c", 5000)]
    upper, work = tmp_path / "upper", tmp_path / "work"
    for path in (upper, work):
        path.mkdir()
    os.chown(upper, 100000, 200000)
    joined = ":".join(str(path).replace(":", "\\:") for path in lowers)
    options = [*MAPPED, f"workdir={work}", f"upperdir={upper}", f"lowerdir={joined}"]
    rootfs.mount_all([Mount(type="overlay", source="overlay", options=options)], str(root))
    assert mounts(root) == 1
    assert (os.stat(root).st_uid, os.stat(root).st_gid) == (100000, 200000)
    assert [os.stat(root / name)[4:6] for name in "ab"] == [(100000, 200000), (100005, 200005)]
    assert os.stat(root / "c").st_uid == 65534  # not mapped: nobody's
    os.chown(root / "b", 100007, 200007)
    assert os.stat(upper / "b")[4:6] == (100007, 200007)
    assert os.stat(tmp_path / "two/b").st_uid == 5
    rootfs.unmount_all(str(root))
    assert mounts(root) == 0
    assert list(root.iterdir()) == []


def test_a_bind_mount_is_mapped_whole(tmp_path: Path, root: Path) -> None:
    source = layer(tmp_path / "source", "a")
    rootfs.mount_all([Mount(type="bind", source=str(source), options=[*MAPPED, "ro", "rbind"])], str(root))
    assert mounts(root) == 1
    assert os.stat(root / "a")[4:6] == (100000, 200000)
    with pytest.raises(OSError, match="Read-only"):
        (root / "b").touch()


def test_a_mount_that_cannot_be_leaves_nothing(tmp_path: Path, root: Path) -> None:
    for options in (
        [*MAPPED, f"lowerdir={tmp_path}/missing:{tmp_path}"],
        ["uidmap=0:4294967295:9", "gidmap=0:1:1", f"lowerdir={tmp_path}:{tmp_path}"],
        [*MAPPED, f"lowerdir={tmp_path}", "upperdir=/nowhere", "workdir=/nowhere"],
    ):
        with pytest.raises(OrlopError):
            rootfs.mount_all([Mount(type="overlay", source="overlay", options=options)], str(root))
        assert mounts(root) == 0
        assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    "options", [["uidmap=0:1:1"], ["gidmap=0:1:1"], ["uidmap=0:1:1", "gidmap=0 1 1"], ["uidmap=x", "gidmap=x"]]
)
def test_half_a_mapping_is_refused(options: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        idmap.split(options)


def test_options_without_a_mapping_stay_as_they_are() -> None:
    assert idmap.split(["rw", "rbind", "lowerdir=a"]) == ("", "", ["rw", "rbind", "lowerdir=a"])
