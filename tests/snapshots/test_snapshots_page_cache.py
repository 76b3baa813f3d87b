"""What containers read of kept layers, and where that lies in memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from layer_world import Layered, archive, layered

from orlop.mounts import erofs, mountinfo
from orlop.mounts.temporary import TemporaryMounts
from orlop.snapshots import probe

PAGES = 512
TEXT = "".join(f"{number:{mmap.PAGESIZE - 1}}\n" for number in range(PAGES))
BASE = archive({"big": TEXT, "small": "s"})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p


@pytest.fixture
def world(indexable: None, tmp_path: Path, temporary: TemporaryMounts) -> Iterator[Layered]:
    if refusal := probe.direct_refusal(tmp_path):
        pytest.skip(refusal)
    with layered(tmp_path / "world", temporary, direct=True) as made:
        yield made


def resident(path: str) -> int:
    """How many pages of the file that whoever opens `path` reads are in memory (mincore(2))."""
    size = ctypes.c_size_t(PAGES * mmap.PAGESIZE)
    with open(path, "rb") as file:
        start = ctypes.c_void_p(_libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0))
    try:
        found = (ctypes.c_ubyte * PAGES)()
        assert _libc.mincore(start, size, found) == 0
        return sum(page & 1 for page in found)
    finally:
        _libc.munmap(start, size)


def drop(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def is_direct(world: Layered, layer: int) -> bool:
    point = os.fsencode(world.root / f"driver/l/{layer}")
    (entry,) = (entry for entry in mountinfo.read() if entry.point == point)
    return "directio" in entry.super_options


async def test_what_one_container_reads_is_in_memory_for_the_next_and_once(
    world: Layered, temporary: TemporaryMounts
) -> None:
    await world.layer("base", "", BASE)
    tar = world.root / "driver/layers/1/tar"
    drop(tar)
    assert not erofs.is_cached([str(tar)])
    with (
        temporary.mounted(await world.driver.prepare("a", "base")) as first,
        temporary.mounted(await world.driver.prepare("b", "base")) as second,
    ):
        assert is_direct(world, 1)
        assert resident(f"{second}/big") == 0
        assert Path(first, "big").read_text() == TEXT
        assert resident(f"{second}/big") == PAGES
        assert not erofs.is_cached([str(tar)])
        assert Path(second, "big").read_text() == TEXT


async def test_a_layer_that_is_in_memory_is_read_from_there_until_it_is_not(
    world: Layered, temporary: TemporaryMounts
) -> None:
    await world.layer("base", "", BASE)
    tar = world.root / "driver/layers/1/tar"
    assert erofs.is_cached([str(tar)])
    with temporary.mounted(await world.driver.prepare("a", "base")) as root:
        assert Path(root, "small").read_text() == "s"
        assert not is_direct(world, 1)
    drop(tar)
    await world.driver.cleanup()
    assert not is_direct(world, 1)  # an active snapshot lies over it
    await world.driver.remove("a")
    await world.driver.cleanup()
    with temporary.mounted(await world.driver.prepare("b", "base")) as root:
        assert is_direct(world, 1)
        assert Path(root, "big").read_text() == TEXT


async def test_the_kernel_reads_further_ahead_in_mounts_than_by_itself(world: Layered) -> None:
    await world.layer("base", "", BASE)
    before = erofs._backing_devices()
    await world.driver.prepare("a", "base")
    if len(made := erofs._backing_devices() - before) != 1:
        pytest.skip("somebody else mounts EROFS images at the same time")
    assert int(Path("/sys/class/bdi", made.pop(), "read_ahead_kb").read_text()) >= erofs.READAHEAD
