"""The erofs snapshotter: its mounts, and layers that come as images."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from orlop.core.layer import Traits
from orlop.core.mount import Mount
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.mounts.activate import perform, plan, release
from orlop.mounts.handlers import HANDLERS
from orlop.mounts.mount import mount_all, unmount, unmount_all
from orlop.mounts.temporary import TemporaryMounts
from orlop.snapshots.erofs import ErofsSnapshotter
from orlop.snapshots.image_of_tree import write_image

pytestmark = pytest.mark.root
TAIL = ("ro", "loop")


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[TemporaryMounts]:
    yield TemporaryMounts(tmp_path / "tmpmounts")
    unmount_all(tmp_path)


async def committed(driver: ErofsSnapshotter, temporary: TemporaryMounts, name: str, parent: str, **files: str) -> None:
    with temporary.mounted(await driver.prepare(f"make-{name}", parent)) as root:
        for path, text in files.items():
            Path(root, path).write_text(text)
    await driver.commit(name, f"make-{name}")


@contextmanager
def active(place: Path, mounts: Sequence[Mount]) -> Iterator[str]:
    """Where `mounts` are mounted, by the mount manager's ways."""
    directory, target = (tempfile.mkdtemp(prefix=name, dir=place) for name in ("active", "target"))
    _, system = perform(plan(mounts, HANDLERS), directory, HANDLERS, [str(place)])
    try:
        mount_all(system, target)
        try:
            yield target
        finally:
            unmount(target)
    finally:
        release(directory, HANDLERS)


async def test_mounts_are_those_of_containerd(tmp_path: Path, temporary: TemporaryMounts) -> None:
    driver = ErofsSnapshotter(tmp_path / "driver", mount_options=["index=off"])
    at = tmp_path / "driver" / "snapshots"

    def image(id: int) -> Mount:
        return Mount("erofs", f"{at}/{id}/layer.erofs", (*TAIL, f"device={at}/{id}/layer.data"))

    assert await driver.prepare("alone") == [Mount("bind", f"{at}/1/fs", ("rw", "rbind"))]
    await committed(driver, temporary, "a", "", one="1")
    await committed(driver, temporary, "b", "a", two="2")
    assert await driver.view("v1", "a") == [image(2)]
    assert await driver.view("v2", "b") == [
        image(3),
        image(2),
        Mount("format/mkdir/overlay", "overlay", ("lowerdir={{ overlay 0 1 }}", "index=off")),
    ]
    upper = ("workdir={}/{}/work", "upperdir={}/{}/fs")
    assert await driver.prepare("c", "a") == [
        image(2),
        Mount(
            "format/mkdir/overlay",
            "overlay",
            (*(text.format(at, 6) for text in upper), "lowerdir={{ mount 0 }}", "index=off"),
        ),
    ]
    await driver.close()


async def test_a_container_may_write_to_an_image_of_a_limited_size(tmp_path: Path, temporary: TemporaryMounts) -> None:
    driver = ErofsSnapshotter(tmp_path / "driver", default_size=4 << 20)
    labels = {"containerd.io/snapshot/max-size": str(2 << 20)}
    mounts = await driver.prepare("k", "", labels)
    assert mounts[0].options == ("X-containerd.mkfs.fs=ext4", f"X-containerd.mkfs.size={2 << 20}", "rw", "loop")
    assert mounts[1].type == "format/mkdir/bind"
    with pytest.raises(InvalidArgument, match="max-size"):
        await driver.prepare("other", "", {"containerd.io/snapshot/max-size": "much"})
    await driver.close()


@pytest.mark.parametrize("in_use", [True, False])
async def test_what_was_written_to_an_image_is_committed(
    tmp_path: Path, temporary: TemporaryMounts, in_use: bool
) -> None:
    driver = ErofsSnapshotter(tmp_path / "driver", default_size=8 << 20)
    with active(tmp_path, await driver.prepare("make")) as root:
        Path(root, "one").write_text("1")
        Path(root, "gone").write_text("g")
    await driver.commit("base", "make")
    with active(tmp_path, await driver.prepare("k", "base")) as root:
        Path(root, "two").write_text("2")
        Path(root, "gone").unlink()
        os.mkdir(Path(root, "private"), 0o700)
        if in_use:
            await driver.commit("top", "k")
    if not in_use:
        await driver.commit("top", "k")
    assert not list((tmp_path / "driver").glob("snapshots/*/rwlayer.img"))
    backing = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert not [path for path in backing if str(tmp_path) in path]
    with temporary.mounted(await driver.view("v", "top")) as root:
        assert {name: Path(root, name).read_text() for name in ("one", "two")} == {"one": "1", "two": "2"}
        assert sorted(os.listdir(root)) == ["one", "private", "two"]
        assert os.stat(Path(root, "private")).st_mode & 0o777 == 0o700
    await driver.prepare("empty", "top")
    await driver.commit("nothing", "empty")
    with temporary.mounted(await driver.view("w", "nothing")) as root:
        assert sorted(os.listdir(root)) == ["one", "private", "two"]
    await driver.close()


@pytest.mark.parametrize("in_use", [True, False])
async def test_an_image_that_is_written_to_is_seen_as_it_is(
    tmp_path: Path, temporary: TemporaryMounts, in_use: bool
) -> None:
    driver = ErofsSnapshotter(tmp_path / "driver", default_size=8 << 20)
    alone = await driver.prepare("alone")
    with temporary.mounted(alone, readonly=True) as root:
        assert os.listdir(root) == []
    with active(tmp_path, alone) as root:
        Path(root, "one").write_text("1")
    await driver.commit("base", "alone")
    mounts = await driver.prepare("k", "base")
    with temporary.mounted(mounts, readonly=True) as root:
        assert os.listdir(root) == ["one"]

    def look() -> None:
        with temporary.mounted(mounts, readonly=True) as root:
            assert sorted(os.listdir(root)) == ["one", "two"]
            assert Path(root, "two").read_text() == "2"
            with pytest.raises(OSError, match="Read-only"):
                Path(root, "three").touch()

    with active(tmp_path, mounts) as root:
        Path(root, "two").write_text("2")
        if in_use:
            look()
            Path(root, "four").touch()
    if not in_use:
        look()
    assert not os.listdir(tmp_path / "tmpmounts")
    backing = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert not [path for path in backing if str(tmp_path) in path]
    await driver.close()


async def test_a_layer_that_was_applied_is_not_mixed_with_what_is_written_after(
    tmp_path: Path, temporary: TemporaryMounts
) -> None:
    driver = ErofsSnapshotter(tmp_path / "driver")
    mounts = await driver.prepare("k")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("layer")
    place = driver.place(mounts)
    assert place is not None
    with place as into:
        write_image(str(tmp_path / "tree"), into.index, into.tar)
        into.keep("", "", Traits())
    assert driver.place(mounts) is None
    with temporary.mounted(driver.current(mounts)) as root:
        assert Path(root, "file").read_text() == "layer"
    Path(mounts[0].source, "late").touch()
    with pytest.raises(FailedPrecondition, match="was written to after a layer was applied"):
        await driver.commit("name", "k")
    Path(mounts[0].source, "late").unlink()
    await driver.commit("name", "k")
    await driver.close()


async def test_a_place_that_is_left_leaves_nothing(tmp_path: Path) -> None:
    driver = ErofsSnapshotter(tmp_path / "driver")
    place = driver.place(await driver.prepare("k"))
    assert place is not None
    with place as into:
        os.write(into.index, b"half")
        os.write(into.tar, b"half")
    assert sorted(os.listdir(tmp_path / "driver/snapshots/1")) == [".erofslayer", "fs", "work"]
    assert driver.place([Mount("bind", "/elsewhere/1/fs", ("rw", "rbind"))]) is None
    await driver.close()


def test_an_image_of_a_tree_is_whole_and_sound(tmp_path: Path, temporary: TemporaryMounts) -> None:
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "deep/er/empty").touch()
    (tree / "big").write_bytes(os.urandom(100_001))
    with (tree / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"data")
        file.truncate(3 << 20)
    os.link(tree / "big", tree / "deep/again")
    os.setxattr(tree / "deep", "trusted.overlay.opaque", b"y")
    os.mknod(tree / "gone", 0o020000, 0)
    (tree / "link").symlink_to("x" * 1000)
    image, data = tmp_path / "image", tmp_path / "data"
    with image.open("w+b") as one, data.open("w+b") as other:
        write_image(str(tree), one.fileno(), other.fileno())
    assert data.stat().st_size < 400_000
    with temporary.mounted([Mount("erofs", str(image), (*TAIL, f"device={data}"))]) as root:
        subprocess.run(["diff", "-r", "--no-dereference", str(tree), root], check=True)
        assert os.getxattr(Path(root, "deep"), "trusted.overlay.opaque") == b"y"
        assert os.lstat(Path(root, "deep/again")).st_nlink == 2
