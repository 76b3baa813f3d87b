"""Directories that a kept layer only names on the way to files look as they do in the layers below."""

from __future__ import annotations

import asyncio
import io
import os
import random
import signal
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from layer_world import Layered, archive, layered

from orlop import faults
from orlop.core.diff import LOOSE
from orlop.core.mount import Mount
from orlop.errors import DataLoss, ResourceExhausted
from orlop.mounts.mount import unmount_all
from orlop.mounts.temporary import TemporaryMounts
from orlop.snapshots import merged_layers

pytestmark = pytest.mark.usefixtures("indexable")


def entry(
    name: str, mode: int = 0o755, uid: int = 0, gid: int = 0, mtime: int = 1000, **fields: str
) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.mode, made.uid, made.gid, made.mtime = tarfile.DIRTYPE, mode, uid, gid, mtime
    made.pax_headers = fields
    return made


def link(name: str, target: str) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = tarfile.SYMTYPE, target
    return made


def tar_of(*entries: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for one in entries:
            tar.addfile(one)
    return out.getvalue()


BASE = tar_of(
    entry("tmp", 0o1777),
    entry("home", 0o750, 7, 8, mtime=2000),
    entry(
        "home/inner", 0o2711, 9, 10, mtime=3000, **{"SCHILY.xattr.user.kind": "inner", "SCHILY.xattr.security.x": "y"}
    ),
    entry("var"),
    entry("var/real", 0o701, mtime=4000),
    link("run", "var/real"),
    tarfile.TarInfo("file"),
    entry("gone", 0o700),
    entry("hidden", 0o711, mtime=5000),
    entry("hidden/old", 0o700),
    entry("own", 0o700),
)
MIDDLE = archive({"home/inner/deep/first": "1", ".wh.gone": "", "hidden/.wh..wh..opq": "", "own/": None, "new/x": "x"})
TOP = archive(
    {
        "tmp/t": "t",
        "home/inner/deep/second": "2",
        "home/inner/also": "a",
        "run/pid": "p",
        "file/now": "n",
        "gone/back": "b",
        "hidden/old/x": "x",
        "own/o": "o",
        "new/y": "y",
        "new/z/z": "z",
    }
)


KILLED = """
import asyncio, sys
from pathlib import Path
from orlop import faults
from orlop.mounts.temporary import TemporaryMounts
sys.path.insert(0, sys.argv[2])
from layer_world import layered

async def work(root):
    with layered(root, TemporaryMounts(root.parent / "mounts")) as world:
        await world.driver.prepare("k", "top")

faults.arm("snapshots.covers.synced", "kill")
asyncio.run(work(Path(sys.argv[1])))
"""


def directories(root: str) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for place, _, _ in os.walk(root):
        status = os.lstat(place)
        xattrs = {name: os.getxattr(place, name) for name in os.listxattr(place)}
        found[os.path.relpath(place, root)] = (oct(status.st_mode), status.st_uid, status.st_gid, xattrs)
    return found


def files(root: str) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(Path(root).rglob("*")) if path.is_file()}


async def test_implied_directories_are_as_below_and_as_unpacking_makes_them(
    tmp_path: Path, temporary: TemporaryMounts
) -> None:
    shown = []
    for keeps in (True, False):
        with layered(tmp_path / str(keeps), temporary, keeps=keeps) as world:
            for name, parent, data in (("base", "", BASE), ("middle", "base", MIDDLE), ("top", "middle", TOP)):
                await world.layer(name, parent, data)
            assert len(world.kept) == 3 * keeps
            with temporary.mounted(await world.driver.view("v", "top")) as root:
                shown.append((directories(root), files(root)))
                if keeps:
                    assert {
                        name: os.stat(Path(root, name)).st_mtime
                        for name in ("tmp", "home", "home/inner", "run", "hidden")
                    } == {"tmp": 1000, "home": 2000, "home/inner": 3000, "run": 4000, "hidden": 5000}
            unmount_all(tmp_path)
    for one, other in zip(*shown, strict=True):
        assert one == other
    assert shown[0][0]["home/inner"] == ("0o42711", 9, 10, {"user.kind": b"inner", "security.x": b"y"})
    assert shown[0][0]["gone"] == ("0o40755", 0, 0, {})


def made_up(chance: random.Random) -> bytes:
    """A layer of some directories with entries of their own, files below implied ones, and what takes away."""
    entries = []
    gone: list[str] = []
    for _ in range(chance.randint(1, 6)):
        path = "/".join(chance.choices("abc", k=chance.randint(1, 4)))
        if any(f"{path}/".startswith(f"{one}/") for one in gone):
            continue  # nothing can be below a marker
        kind = chance.random()
        if kind < 0.4:
            mode = chance.choice((0o700, 0o750, 0o755, 0o1777, 0o2775))
            entries.append(entry(path, mode, chance.randrange(3), chance.randrange(3)))
        elif kind < 0.8:
            entries.append(tarfile.TarInfo(f"{path}/file{chance.randrange(3)}"))
        elif kind < 0.9:
            gone.append(path)
            entries.append(tarfile.TarInfo(os.path.join(os.path.dirname(path), f".wh.{os.path.basename(path)}")))
        else:
            entries.append(tarfile.TarInfo(f"{path}/.wh..wh..opq"))
    # A directory comes before what is in it: else that has its group from the directory below, if it hands it on.
    return tar_of(*sorted(entries, key=lambda one: not one.isdir()))


@pytest.mark.parametrize("seed", range(8))
async def test_chains_that_are_made_up_are_as_unpacking_makes_them(
    tmp_path: Path, temporary: TemporaryMounts, seed: int
) -> None:
    chance = random.Random(seed)
    layers = [archive({"base/": None}), *(made_up(chance) for _ in range(4))]
    shown = []
    for keeps in (True, False):
        with layered(tmp_path / str(keeps), temporary, keeps=keeps) as world:
            for number, data in enumerate(layers):
                await world.layer(f"l{number}", f"l{number - 1}" if number else "", data)
            with temporary.mounted(await world.driver.view("v", f"l{len(layers) - 1}")) as root:
                shown.append((directories(root), files(root)))
            unmount_all(tmp_path / str(keeps))
    for one, other in zip(*shown, strict=True):
        assert one == other


async def test_what_is_written_over_it_goes_to_the_directories_as_they_are(
    world: Layered, temporary: TemporaryMounts
) -> None:
    await world.layer("base", "", BASE)
    await world.layer("top", "base", TOP)
    with temporary.mounted(await world.driver.prepare("k", "top")) as root:
        Path(root, "home/inner/mine").touch()
        upper = os.stat(world.root / "driver/snapshots/3/fs/home/inner")
        assert (stat.S_IMODE(upper.st_mode), upper.st_uid, upper.st_gid) == (0o2711, 9, 10)


async def test_a_layer_that_gets_its_parent_at_its_commit(world: Layered, temporary: TemporaryMounts) -> None:
    """As a pull makes it, whose layers are filled beside each other."""
    await world.layer("base", "", BASE)
    (mount,) = await world.driver.prepare("k")
    await world.apply([Mount("overlay", "overlay", (f"upperdir={mount.source}", LOOSE))], TOP)
    await world.driver.commit("top", "k", parent="base")
    assert world.kept == ["1", "2"]
    with temporary.mounted(await world.driver.view("v", "top")) as root:
        assert directories(root)["home/inner"][:3] == ("0o42711", 9, 10)


async def test_a_layer_that_is_a_directory_below(world: Layered, temporary: TemporaryMounts) -> None:
    with temporary.mounted(await world.driver.prepare("k")) as root:
        os.mkdir(Path(root, "tmp"))
        os.chmod(Path(root, "tmp"), 0o1777)
    await world.driver.commit("base", "k")
    await world.layer("top", "base", TOP)
    assert world.kept == ["1"]
    with temporary.mounted(await world.driver.view("v", "top")) as root:
        assert directories(root)["tmp"][0] == "0o41777"


async def test_covers_are_there_only_where_something_is_to_be_mended(world: Layered) -> None:
    await world.layer("base", "", archive({"a/b": "b"}))
    await world.layer("same", "base", archive({"other/x": "x"}))
    await world.driver.prepare("k", "same")
    assert world.mounted == ["1", "2"]
    before = await world.driver.usage("base")
    await world.layer("over", "same", archive({"other/y": "y"}))
    await world.driver.prepare("l", "over")
    (cover,) = (world.root / "driver/l/c").iterdir()
    assert world.mounted == sorted(["1", "2", "3", cover.name])
    assert await world.driver.usage("base") == before


async def test_covers_outlive_the_daemon_and_go_with_their_snapshots(
    tmp_path: Path, temporary: TemporaryMounts
) -> None:
    with layered(tmp_path / "w", temporary) as world:
        await world.layer("base", "", BASE)
        await world.layer("top", "base", TOP)
        before = await world.driver.prepare("k", "top")
        await world.driver.close()
    with layered(tmp_path / "w", temporary) as world:
        assert len(world.mounted) == 3
        assert await world.driver.mounts("k") == before
        unmount_all(tmp_path / "w")
        with temporary.mounted(await world.driver.mounts("k")) as root:
            assert directories(root)["tmp"][0] == "0o41777"
        await world.driver.remove("k")
        await world.driver.remove("top")
        await world.driver.cleanup()
        assert world.mounted == ["1"]
        assert os.listdir(tmp_path / "w/driver/l/c") == []
        await world.driver.close()
        assert world.mounted == []


async def test_a_full_disk_leaves_no_half_cover(world: Layered, temporary: TemporaryMounts) -> None:
    await world.layer("base", "", BASE)
    await world.layer("top", "base", TOP)
    faults.arm("snapshots.covers.synced", "1*error(ENOSPC)")
    try:
        with pytest.raises(ResourceExhausted, match="no space left on device"):
            await world.driver.prepare("k", "top")
    finally:
        faults.disarm()
    assert not list((world.root / "driver/snapshots").glob("*/cover*"))
    with temporary.mounted(await world.driver.prepare("k", "top")) as root:
        assert directories(root)["tmp"][0] == "0o41777"


async def test_a_kill_leaves_no_half_cover(tmp_path: Path, temporary: TemporaryMounts) -> None:
    root = tmp_path / "world"
    with layered(root, temporary) as world:
        await world.layer("base", "", BASE)
        await world.layer("top", "base", TOP)
        await world.driver.close()
    command = [sys.executable, "-c", KILLED, str(root), str(Path(__file__).parent)]
    ended = await asyncio.to_thread(subprocess.run, command)
    assert ended.returncode == -signal.SIGKILL
    (left,) = (root / "driver/snapshots").glob("*/cover*")
    assert left.name == "cover.new"
    with layered(root, temporary) as world:
        with temporary.mounted(await world.driver.view("v", "top")) as seen:
            assert directories(seen)["tmp"][0] == "0o41777"
        assert not left.exists()


async def test_a_damaged_index_is_named(world: Layered) -> None:
    await world.layer("base", "", BASE)
    await world.layer("top", "base", TOP)
    index = world.root / "driver/layers/2/index"
    index.chmod(0o600)
    index.write_bytes(bytes(4096))
    with pytest.raises(DataLoss, match="layers/2/index"):
        await world.driver.prepare("k", "top")


async def test_long_chains_of_them_are_merged(
    world: Layered, temporary: TemporaryMounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged_layers, "LOWERS_LIMIT", 40)
    await world.layer("base", "", BASE)
    parent = "base"
    for number in range(70):
        await world.layer(f"l{number}", parent, archive({f"home/inner/{number}": str(number)}))
        parent = f"l{number}"
    (mount,) = await world.driver.prepare("k", parent)
    assert len(next(option for option in mount.options if option.startswith("lowerdir=")).split(":")) == 15
    with temporary.mounted([mount]) as root:
        assert directories(root)["home/inner"] == ("0o42711", 9, 10, {"user.kind": b"inner", "security.x": b"y"})
        assert len(files(root)) == 71


async def test_a_layer_with_whiteouts_is_not_taken_as_it_is_with_nothing_below(
    world: Layered, temporary: TemporaryMounts
) -> None:
    data = archive({"d/": None, "d/.wh.x": "", "y": "y"})
    await world.layer("base", "", archive({"d/": None, "d/x": "x"}))
    await world.layer("top", "base", data)
    assert world.kept == ["1", "2"]
    await world.layer("alone", "", data)
    with temporary.mounted(await world.driver.view("v", "alone")) as root:
        assert os.listdir(Path(root, "d")) == []
    info = await world.driver.stat("alone")
    assert info.labels["containerd.io/snapshot/orlop.unpacked"] == "takes away 1 names with no layer below"
