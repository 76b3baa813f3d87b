"""Mounts that must be prepared, against the real kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.core.activation import ActiveMount
from orlop.core.mount import Mount
from orlop.errors import InvalidArgument, Unimplemented, Unknown
from orlop.mounts import mountinfo, transforms
from orlop.mounts.activate import perform, plan, release
from orlop.mounts.handlers import ErofsHandler, LoopHandler
from orlop.mounts.mount import mount_all, unmount_all

pytestmark = pytest.mark.root
HANDLERS = {"erofs": ErofsHandler(), "loop": LoopHandler()}
EXT4 = ("X-containerd.mkfs.fs=ext4", "X-containerd.mkfs.size=2MiB", "rw", "loop")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[str]:
    made = tmp_path / "activation"
    made.mkdir()
    yield str(made)
    unmount_all(tmp_path)


def mounted_below(path: Path | str) -> list[str]:
    return [os.fsdecode(entry.point) for entry in mountinfo.read() if entry.lies_below(os.fsencode(str(path)))]


def active(*points: str) -> list[ActiveMount]:
    return [ActiveMount(Mount("x", f"source{n}", (), f"target{n}"), point, 1) for n, point in enumerate(points)]


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{{ mount 0 }}/upper", "/a/upper"),
        ("lowerdir={{overlay 0 2}}", "lowerdir=/a:/b:/c"),
        ("{{ overlay 2 0 }}", "/c:/b:/a"),
        ("{{ source 1 }}-{{ target 2 }}", "source1-target2"),
        ("plain", "plain"),
    ],
)
def test_format_fills_in_what_was_mounted_before(text: str, filled: str) -> None:
    mount = transforms.format_(Mount("overlay", text, (text,), text), active("/a", "/b", "/c"), ())
    assert (mount.source, mount.options, mount.target) == (filled, (filled,), filled)


@pytest.mark.parametrize(
    "text", ["{{ mount 3 }}", "{{ mount -1 }}", "{{ shell 0 }}", "{{ mount }}", "{{", "{{ overlay 0 }}"]
)
def test_format_refuses_what_it_does_not_know(text: str) -> None:
    with pytest.raises(Unknown, match="mount template"):
        transforms.format_(Mount("overlay", text), active("/a", "/b", "/c"), ())


def test_mkdir_makes_directories_below_the_roots_alone(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "link").symlink_to(outside)

    def make(value: str) -> Mount:
        mount = Mount("bind", "/x", (f"X-containerd.mkdir.path={value}", "ro"))
        return transforms.mkdir(mount, (), [str(root)])

    assert make(f"{root}/d:0751:12:34").options == ("ro",)
    made = (root / "d").stat()
    assert (made.st_mode & 0o7777, made.st_uid, made.st_gid) == (0o751, 12, 34)
    make(f"{root}/d")  # what is there stays
    for value in (f"{outside}/d", f"{root}/../outside/d", f"{root}x/d"):
        with pytest.raises(Unimplemented, match="configured for mkdir"):
            make(value)
    with pytest.raises(Unknown):
        make(f"{root}/link/d")
    for value in (f"{root}/e:9", f"{root}/e:1777", f"{root}/e:700:1", f"{root}/e:700:-1:0"):
        with pytest.raises(InvalidArgument):
            make(value)
    assert os.listdir(outside) == []
    assert not (root / "e").exists()


def test_mkfs_makes_an_image_once_and_refuses_what_is_no_size_or_file_system(tmp_path: Path) -> None:
    image = tmp_path / "image"

    def make(*options: str) -> Mount:
        return transforms.mkfs(Mount("ext4", str(image), options), (), [str(tmp_path)])

    for options in ((), ("X-containerd.mkfs.size=0",), ("X-containerd.mkfs.size=many",)):
        with pytest.raises(InvalidArgument, match="size"):
            make(*options)
    with pytest.raises(InvalidArgument, match="unsupported filesystem"):
        make("X-containerd.mkfs.size=1MiB", "X-containerd.mkfs.fs=minix")
    assert make(*EXT4).options == ("rw", "loop")
    before = image.stat()
    assert before.st_size == 2 << 20
    make(*EXT4)
    assert image.stat().st_mtime_ns == before.st_mtime_ns
    assert os.listdir(tmp_path) == ["image"]


def test_an_image_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Unknown, match="failed format"):
        transforms.mkfs(
            Mount("xfs", f"{tmp_path}/i", ("X-containerd.mkfs.size=4096", "X-containerd.mkfs.fs=xfs")),
            (),
            [str(tmp_path)],
        )
    assert os.listdir(tmp_path) == []


def test_plain_mounts_need_nothing() -> None:
    for mounts in ([], [Mount("bind", "/", ("rbind",))], [Mount("unknown/bind", "/")]):
        with pytest.raises(Unimplemented, match=r"^not implemented$"):
            plan(mounts, HANDLERS)
    with pytest.raises(Unimplemented):
        plan([], HANDLERS, temporary=True)
    with pytest.raises(Unimplemented):
        plan([Mount("format/overlay", "overlay")], HANDLERS, allowed=["format/*"])


def test_a_writable_image_below_an_overlay(tmp_path: Path, directory: str) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    (lower / "below").write_text("1")
    image = tmp_path / "rw.img"
    mounts = [
        Mount("mkfs/ext4", str(image), EXT4),
        Mount(
            "format/mkdir/overlay",
            "overlay",
            (
                "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
                "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
                "upperdir={{ mount 0 }}/upper",
                "workdir={{ mount 0 }}/work",
                f"lowerdir={lower}",
            ),
        ),
    ]
    done, system = perform(plan(mounts, HANDLERS), directory, HANDLERS, [str(tmp_path)])
    assert [one.point for one in done] == [f"{directory}/1"]
    assert system == (
        Mount(
            "overlay", "overlay", (f"upperdir={directory}/1/upper", f"workdir={directory}/1/work", f"lowerdir={lower}")
        ),
    )
    target = tmp_path / "target"
    target.mkdir()
    mount_all(system, target)
    assert (target / "below").read_text() == "1"
    (target / "above").write_text("2")
    unmount_all(target)
    release(directory, HANDLERS)
    assert not os.path.exists(directory)
    assert not mounted_below(tmp_path)


def test_temporary_mounts_all_and_leaves_a_bind(tmp_path: Path, directory: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("here")
    done, system = perform(
        plan([Mount("bind", str(source), ("rbind", "ro"))], HANDLERS, temporary=True), directory, HANDLERS, ()
    )
    assert system == (Mount("bind", f"{directory}/1", ("rbind",)),)
    assert Path(done[0].point, "file").read_text() == "here"
    release(directory, HANDLERS)
    assert (source / "file").read_text() == "here"


def test_a_loop_mount_is_a_device_until_it_is_released(tmp_path: Path, directory: str) -> None:
    image = tmp_path / "image"
    transforms.mkfs(Mount("ext4", str(image), EXT4), (), [str(tmp_path)])
    mounts = [Mount("loop", str(image)), Mount("format/ext4", "{{ mount 0 }}", ("rw",))]
    done, system = perform(plan(mounts, HANDLERS), directory, HANDLERS, ())
    device = os.readlink(done[0].point)
    assert Path(f"/sys/block/{os.path.basename(device)}/loop/backing_file").read_text().strip() == str(image)
    assert system == (Mount("ext4", done[0].point, ("rw",)),)
    target = tmp_path / "target"
    target.mkdir()
    mount_all(system, target)
    unmount_all(target)
    release(directory, HANDLERS)
    backing = Path(f"/sys/block/{os.path.basename(device)}/loop/backing_file")
    assert not backing.exists() or backing.read_text().strip() != str(image)


def test_a_failure_half_way_leaves_nothing(tmp_path: Path, directory: str) -> None:
    mounts = [Mount("bind", str(tmp_path), ("bind",)), Mount("bind", f"{tmp_path}/nowhere", ("rbind",))]
    with pytest.raises(Unknown, match=r"mount failed \{bind .*/nowhere  \[rbind\]\}: .*no such file"):
        perform(plan(mounts, HANDLERS, temporary=True), directory, HANDLERS, ())
    assert not os.path.exists(directory)
    assert not mounted_below(tmp_path)


def test_a_mount_in_use_is_detached(tmp_path: Path, directory: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    perform(plan([Mount("tmpfs", "tmpfs")], HANDLERS, temporary=True), directory, HANDLERS, ())
    with open(f"{directory}/1/held", "w") as held:
        release(directory, HANDLERS)
        held.write("still there")
    assert not os.path.exists(directory)
