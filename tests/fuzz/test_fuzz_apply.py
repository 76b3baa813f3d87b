"""Archives with bytes changed: nothing outside the root, and no error but ours."""

from __future__ import annotations

import gc
import os
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orlop.errors import OrlopError
from orlop.layers import apply, tar, write
from orlop.layers.stream import ByteStream
from orlop.layers.tar import Entry, TarReader

NAMES = st.sampled_from([b"a", b"a/b", b"../c", b"/d", b"a/../../e", b".wh.a", b"a/.wh..wh..opq", b"l/x", b"f", b"./"])
TYPES = st.sampled_from([tar.REGULAR, tar.LINK, tar.SYMLINK, tar.DIRECTORY, tar.FIFO, b"7", b"x", b"L", b"S"])
TARGETS = st.sampled_from([b"..", b"/", b"a", b"../../outside", b"l", b"", b"../outside/x"])
EDITS = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=4)


def block(name: bytes, type: bytes, link: bytes, mode: int, data: bytes) -> bytes:
    stored = data if type in (tar.REGULAR, b"x", b"L", b"S", b"7") else b""
    made = Entry(name, type, mode, os.geteuid(), os.getegid(), len(stored), 0, 0, len(stored), link=link)
    return write.head(made) + stored + write.padding(len(stored))


ARCHIVES = st.lists(
    st.builds(block, NAMES, TYPES, TARGETS, st.integers(0, 0o7777), st.binary(max_size=600)), max_size=9
)


@pytest.fixture(scope="module", autouse=True)
def no_garbage() -> None:
    """What earlier tests left to the collector is not to go while descriptors are counted here."""
    gc.collect()


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ARCHIVES, EDITS, st.booleans())
def test_a_changed_archive_stays_inside_and_fails_as_ours(
    blocks: list[bytes], edits: list[tuple[int, int]], resum: bool
) -> None:
    archive = bytearray(b"".join(blocks) + write.END)
    for at, byte in edits:
        archive[at % len(archive)] = byte
        start = at % len(archive) // 512 * 512
        if resum:  # so that what follows the sum's check is reached as well
            archive[start + 148 : start + 156] = b" " * 8
            archive[start + 148 : start + 156] = b"%06o\0 " % sum(archive[start : start + 512])
    with tempfile.TemporaryDirectory() as place:
        os.mkdir(f"{place}/outside")
        with open(f"{place}/outside/x", "w") as file:
            file.write("host")
        os.mkdir(f"{place}/root")
        before = os.stat(f"{place}/outside/x"), os.stat(f"{place}/outside")
        handles = len(os.listdir("/proc/self/fd"))
        try:
            apply.apply(TarReader(ByteStream([bytes(archive)])), f"{place}/root")
        except OrlopError:
            pass
        assert len(os.listdir("/proc/self/fd")) == handles
        assert sorted(os.listdir(place)) == ["outside", "root"]
        assert os.listdir(f"{place}/outside") == ["x"]
        after = os.stat(f"{place}/outside/x"), os.stat(f"{place}/outside")
        assert [(s.st_mode, s.st_nlink, s.st_ctime_ns) for s in after] == [
            (s.st_mode, s.st_nlink, s.st_ctime_ns) for s in before
        ]
