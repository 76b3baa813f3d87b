"""Layers kept as tar and index behind overlayfs snapshots, filled by the real differ and mounted by the kernel."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from layer_world import SCOPE, Layered, archive, layered

from orlop import faults
from orlop.core.descriptor import Descriptor
from orlop.core.diff import LOOSE, NeedsLower
from orlop.core.layer import Traits
from orlop.core.mount import Mount
from orlop.errors import DataLoss, FailedPrecondition, NotFound, ResourceExhausted, Unknown
from orlop.layers import media
from orlop.layers.compare import compare
from orlop.mounts.mount import unmount_all
from orlop.mounts.temporary import TemporaryMounts

pytestmark = pytest.mark.usefixtures("indexable")
BASE = archive({"one": "1", "d/": None, "d/two": "2"})
TOP = archive({"three": "3", ".wh.one": "", "d/": None, "d/.wh.two": "", "d/four": "4"})


def tree(root: str) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() for p in sorted(Path(root).rglob("*")) if p.is_file()}


async def test_a_layer_that_is_applied_is_kept_and_mounted_when_first_needed(
    world: Layered, temporary: TemporaryMounts
) -> None:
    await world.layer("base", "", BASE)
    await world.layer("top", "base", TOP)
    assert world.kept == ["1", "2"]
    assert os.listdir(world.root / "driver/snapshots/1/fs") == []
    assert world.mounted == ["1"]  # the extraction of the second layer had the first below it
    with temporary.mounted(await world.driver.prepare("k", "top")) as root:
        assert world.mounted == ["1", "2"]
        assert tree(root) == {"three": "3", "d/four": "4"}
        Path(root, "d/new").write_text("n")
        Path(root, "three").unlink()
        assert tree(root) == {"d/four": "4", "d/new": "n"}
    (view,) = await world.driver.view("v", "base")
    assert view == Mount("bind", str(world.root / "driver/l/1"), ("ro", "rbind"))
    with temporary.mounted([view]) as root:
        assert tree(root) == {"one": "1", "d/two": "2"}
        with pytest.raises(OSError) as caught:
            Path(root, "new").touch()
        assert caught.value.errno == errno.EROFS


async def test_a_client_that_writes_by_itself_gets_a_directory(world: Layered, temporary: TemporaryMounts) -> None:
    with temporary.mounted(await world.driver.prepare("k")) as root:
        Path(root, "own").write_text("x")
    await world.apply(await world.driver.mounts("k"), BASE)
    await world.driver.commit("base", "k")
    assert world.kept == []
    with temporary.mounted(await world.driver.view("v", "base")) as root:
        assert tree(root) == {"own": "x", "one": "1", "d/two": "2"}


@pytest.mark.parametrize("stale", [False, True])
async def test_what_a_client_writes_after_a_layer_was_kept_lies_over_it(
    world: Layered, temporary: TemporaryMounts, stale: bool
) -> None:
    given = await world.driver.prepare("k")
    await world.apply(given, BASE)
    with temporary.mounted(given if stale else await world.driver.mounts("k")) as root:
        assert tree(root) == ({} if stale else {"one": "1", "d/two": "2"})
        Path(root, "own").write_text("x")
    # A second layer, by a client that still has the first mounts: it goes over both.
    await world.apply(given, archive({"d/": None, "d/three": "3", "d/.wh.two": ""}))
    await world.driver.commit("base", "k")
    with temporary.mounted(await world.driver.prepare("next", "base")) as root:
        assert tree(root) == {"own": "x", "one": "1", "d/three": "3"}


async def test_a_changed_root_directory_stays_changed(world: Layered, temporary: TemporaryMounts) -> None:
    await world.apply(await world.driver.prepare("k"), BASE)
    with temporary.mounted(await world.driver.mounts("k")) as root:
        os.chmod(root, 0o500)
    await world.driver.commit("base", "k")
    with temporary.mounted(await world.driver.view("v", "base")) as root:
        assert os.stat(root).st_mode & 0o777 == 0o500
        assert tree(root) == {"one": "1", "d/two": "2"}


async def test_a_layer_of_two_images_lies_on_disk_once_and_is_not_read_twice(world: Layered) -> None:
    await world.layer("a", "", BASE)
    own = await world.driver.usage("a")
    (blob,) = world.files.root.iterdir()
    blob.write_bytes(b"not read any more")
    layer = await world.files.open_reader(SCOPE, blob.name)
    await layer.close()
    mounts = await world.driver.prepare("again")
    found = await world.differ.apply(SCOPE, _gzip(blob.name), mounts)
    assert found.digest == f"sha256:{hashlib.sha256(BASE).hexdigest()}"
    assert found.size == len(BASE)
    await world.driver.commit("b", "again")
    assert world.kept == ["1"]
    shared = await world.driver.usage("b")
    assert own.size >= len(BASE) > shared.size
    await world.driver.remove("a")
    await world.driver.cleanup()
    assert await world.driver.usage("b") == own
    await world.driver.remove("b")
    await world.driver.cleanup()
    assert world.kept == []


def _gzip(digest: str) -> Descriptor:
    return Descriptor(media.OCI_LAYER_GZIP, digest, 1)


async def test_another_stream_of_the_same_tar_shares_the_layer(world: Layered) -> None:
    await world.layer("a", "", BASE)
    descriptor = _gzip("sha256:" + 64 * "0")
    mounts = await world.driver.prepare("k")
    applied = await world.differ.apply_stream(descriptor, [BASE[:700], BASE[700:]], mounts)
    assert applied.size == len(BASE)
    await world.driver.commit("b", "k")
    assert world.kept == ["1"]
    # A stream proves the blob only at its end: until somebody says so, the blob is looked for.
    mounts = await world.driver.prepare("other")
    with pytest.raises(NotFound):
        await world.differ.apply(SCOPE, descriptor, mounts)
    await world.differ.verified(descriptor, applied)
    (world.files.root / descriptor.digest).write_bytes(b"not read any more")
    assert (await world.differ.apply(SCOPE, descriptor, mounts)).digest == applied.digest
    assert world.kept == ["1"]


def linked(name: str, target: str) -> bytes:
    """A layer with a file, and a hard link to one that is not in it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("own"))
        link = tarfile.TarInfo(name)
        link.type, link.linkname, link.mode = tarfile.LNKTYPE, target, 0o600
        tar.addfile(link)
    return out.getvalue()


async def test_a_hard_link_to_a_layer_below_makes_a_directory(world: Layered, temporary: TemporaryMounts) -> None:
    await world.layer("base", "", BASE)
    await world.layer("between", "base", archive({"d/": None, "d/three": "3"}))
    await world.layer("top", "between", linked("beyond", "d/two"))
    assert world.kept == ["1", "2"]
    with temporary.mounted(await world.driver.view("v", "top")) as root:
        assert tree(root) == {"one": "1", "d/two": "2", "d/three": "3", "own": "", "beyond": "2"}
        status = os.stat(Path(root, "beyond"))
        assert os.path.samestat(status, os.stat(Path(root, "d/two")))
        assert (status.st_nlink, status.st_mode & 0o777) == (2, 0o600)
    why = (await world.driver.stat("top")).labels["containerd.io/snapshot/orlop.unpacked"]
    assert why == "hard link to 'd/two', which is not in the same layer"


@pytest.mark.parametrize("target", ["d/nothing", "one", "d", "d/two/x", "d/gone"])
async def test_a_hard_link_to_nothing_is_refused(world: Layered, target: str) -> None:
    await world.layer("base", "", archive({"one": "1", "d/": None, "d/two": "2", "d/gone": "g"}))
    await world.layer("without", "base", archive({".wh.one": "", "d/": None, "d/.wh.gone": ""}))
    mounts = await world.driver.prepare("k", "without")
    with pytest.raises(Unknown, match='failed to apply "beyond"'):
        await world.apply(mounts, linked("beyond", target))


async def test_a_hard_link_waits_for_the_layers_below(world: Layered, temporary: TemporaryMounts) -> None:
    """As in a pull, whose layers are filled beside each other."""
    await world.layer("base", "", BASE)
    (mount,) = await world.driver.prepare("k")
    with pytest.raises(NeedsLower, match="hard link to 'one'"):
        await world.apply([Mount("overlay", "overlay", (f"upperdir={mount.source}", LOOSE))], linked("beyond", "one"))


async def test_directories_that_a_layer_takes_for_granted_stay_as_they_are(
    world: Layered, temporary: TemporaryMounts
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        private = tarfile.TarInfo("private")
        private.type, private.mode, private.uid = tarfile.DIRTYPE, 0o700, 7
        tar.addfile(private)
    await world.layer("base", "", out.getvalue())
    await world.layer("top", "base", archive({"private/file": "x"}))
    with temporary.mounted(await world.driver.view("v", "top")) as root:
        status = os.stat(Path(root, "private"))
        assert (status.st_mode & 0o777, status.st_uid) == (0o700, 7)
        assert tree(root) == {"private/file": "x"}


async def test_markers_with_nothing_below_are_not_to_be_seen(world: Layered, temporary: TemporaryMounts) -> None:
    await world.layer("base", "", archive({"d/": None, "d/.wh.gone": "", ".wh.too": "", "there": "x"}))
    with temporary.mounted(await world.driver.view("v", "base")) as root:
        assert sorted(os.listdir(root)) == ["d", "there"]
        assert os.listdir(Path(root, "d")) == []


async def test_a_daemon_that_stops_leaves_the_mounts_that_are_used(tmp_path: Path, temporary: TemporaryMounts) -> None:
    with layered(tmp_path / "w", temporary) as world:
        await world.layer("base", "", BASE)
        await world.layer("other", "", archive({"other": "o"}))
        for parent in ("base", "other"):
            await world.driver.prepare(f"k-{parent}", parent)
        await world.driver.remove("k-other")
        assert world.mounted == ["1", "2"]
        await world.driver.close()
        await world.driver.close()
        assert world.mounted == ["1"]


async def test_mounts_are_shared_and_go_with_their_last_user(world: Layered) -> None:
    await world.layer("base", "", BASE)
    for key in ("a", "b"):
        await world.driver.prepare(key, "base")
    assert world.mounted == ["1"]
    for key in ("a", "b"):
        await world.driver.remove(key)
        await world.driver.cleanup()
        assert world.mounted == ["1"]  # the next container needs no new mount, and finds its files in memory
    await world.driver.remove("base")
    await world.driver.cleanup()
    assert world.mounted == world.kept == []
    assert os.listdir(world.root / "driver/l") == []


async def test_mounts_outlive_the_daemon_and_are_made_again_after_a_reboot(
    tmp_path: Path, temporary: TemporaryMounts
) -> None:
    with layered(tmp_path / "w", temporary) as world:
        await world.layer("base", "", BASE)
        before = await world.driver.prepare("k", "base")
    with layered(tmp_path / "w", temporary) as world:
        assert world.mounted == ["1"]
        assert await world.driver.mounts("k") == before
        await world.driver.prepare("other", "base")
        assert world.mounted == ["1"]
        unmount_all(tmp_path / "w")
        assert world.mounted == []
        with temporary.mounted(await world.driver.mounts("k")) as root:
            assert tree(root) == {"one": "1", "d/two": "2"}
        unmount_all(tmp_path / "w")
    with layered(tmp_path / "w", temporary, keeps=False) as world:
        # Also where the setting has changed meanwhile; new layers are directories then.
        with temporary.mounted(await world.driver.mounts("k")) as root:
            assert tree(root) == {"one": "1", "d/two": "2"}
        await world.layer("top", "base", TOP)
        assert world.kept == ["1"]
        with temporary.mounted(await world.driver.view("v", "top")) as root:
            assert tree(root) == {"three": "3", "d/four": "4"}


def _remove(tar: Path) -> None:
    tar.unlink()


def _truncate(tar: Path) -> None:
    os.truncate(tar, 512)


@pytest.mark.parametrize("damage", [_remove, _truncate])
async def test_a_damaged_layer_is_named_and_another_apply_mends_it(
    world: Layered, temporary: TemporaryMounts, damage: Callable[[Path], None]
) -> None:
    await world.layer("base", "", BASE)
    damage(world.root / "driver/layers/1/tar")
    digest = hashlib.sha256(BASE).hexdigest()
    with pytest.raises(DataLoss, match=rf"^layer sha256:{digest}: .*/layers/1/tar .*orlop image repair"):
        await world.driver.prepare("k", "base")
    await world.apply(await world.driver.prepare("mend"), BASE)
    await world.driver.remove("mend")
    with temporary.mounted(await world.driver.prepare("k", "base")) as root:
        assert tree(root) == {"one": "1", "d/two": "2"}


async def test_a_tar_removed_under_its_mount_serves_whoever_has_it(world: Layered, temporary: TemporaryMounts) -> None:
    await world.layer("base", "", BASE)
    with temporary.mounted(await world.driver.prepare("k", "base")) as root:
        (world.root / "driver/layers/1/tar").unlink()
        assert tree(root) == {"one": "1", "d/two": "2"}
        # Mended while it is used: the old mount stays with its users, the next one has the new files.
        await world.apply(await world.driver.prepare("mend"), BASE)
        assert tree(root) == {"one": "1", "d/two": "2"}
    with temporary.mounted(await world.driver.mounts("k")) as root:
        assert tree(root) == {"one": "1", "d/two": "2"}


@pytest.mark.parametrize("point", ["snapshots.layers.synced", "snapshots.layers.renamed", "snapshots.layers.placed"])
async def test_a_full_disk_leaves_nothing(world: Layered, temporary: TemporaryMounts, point: str) -> None:
    mounts = await world.driver.prepare("k")
    faults.arm(point, "error(ENOSPC)")
    try:
        with pytest.raises(ResourceExhausted, match="no space left on device"):
            await world.apply(mounts, BASE)
    finally:
        faults.disarm()
    assert world.kept == []
    await world.apply(mounts, BASE)
    await world.driver.commit("base", "k")
    with temporary.mounted(await world.driver.view("v", "base")) as root:
        assert tree(root) == {"one": "1", "d/two": "2"}


async def test_a_bad_archive_leaves_nothing(world: Layered) -> None:
    mounts = await world.driver.prepare("k")
    for bad in (BASE[:600], b"\x01" * 1024):
        with pytest.raises(Unknown):
            await world.apply(mounts, bad)
    assert world.kept == []


async def test_a_snapshot_that_goes_while_its_layer_is_applied_gets_none(world: Layered) -> None:
    mounts = await world.driver.prepare("k")
    place = world.driver.place(mounts)
    assert place is not None
    with place as into:
        os.write(into.tar, b"x")
        await world.driver.remove("k")
        with pytest.raises(FailedPrecondition):
            into.keep("sha256:" + 64 * "1", "", Traits())
    assert world.kept == []


async def test_130_layers_are_mounted_by_paths_that_fit(world: Layered, temporary: TemporaryMounts) -> None:
    parent = ""
    for number in range(130):
        await world.layer(f"l{number}", parent, archive({f"f{number}": str(number)}))
        parent = f"l{number}"
    (mount,) = await world.driver.prepare("k", parent)
    lowers = next(option for option in mount.options if option.startswith("lowerdir=")).split(":")
    assert len(lowers) == 130
    # What a client that shortens paths by their common parent, as containerd's does, hands to the kernel.
    assert len(":".join(os.path.basename(lower) for lower in lowers)) < 1024
    with temporary.mounted([mount]) as root:
        assert len(tree(root)) == 130


async def test_a_comparison_gives_the_same_layer_as_over_directories(
    tmp_path: Path, temporary: TemporaryMounts
) -> None:
    layers = []
    for keeps in (True, False):
        with layered(tmp_path / str(keeps), temporary, keeps=keeps) as world:
            await world.layer("base", "", BASE)
            await world.layer("top", "base", TOP)
            mounts = await world.driver.prepare("k", "top")
            with temporary.mounted(mounts) as root:
                Path(root, "three").write_text("other")
                Path(root, "d/four").unlink()
                os.chmod(Path(root, "d"), 0o700)
                Path(root, "made").mkdir()
                for name in ("three", "made"):
                    os.utime(Path(root, name), (5, 5))
                os.utime(Path(root, "d"), (6, 6))
            assert len(world.kept) == (2 if keeps else 0)
            written: list[bytes] = []
            lower = await world.driver.view("lower", "top")
            with temporary.mounted(lower) as below, temporary.mounted(mounts) as above:
                compare(below, above, written.append)
            layers.append(b"".join(written))
    assert layers[0] == layers[1]
    with tarfile.open(fileobj=io.BytesIO(layers[0])) as tar:
        assert tar.getnames() == ["d", "d/.wh.four", "made", "three"]
