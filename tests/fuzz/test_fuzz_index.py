"""Archives of every shape, and with bytes changed: an index that shows what unpacking makes, or the same refusal."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from index_world import archive, check, index, mounted, mounts_files, seen

from orlop.erofs.merge import merge
from orlop.errors import OrlopError
from orlop.layers import apply, tar, write
from orlop.layers.index import NotIndexable
from orlop.layers.stream import ByteStream
from orlop.layers.tar import Entry, TarReader

CORPUS = Path(__file__).with_name("corpus-tar")
"""Small archives in hexadecimal, one a file: each once showed, or is meant to show, a fault."""

PARTS = st.sampled_from(
    [b"a", b"b", b"c", b"..", b".", b"", b"n" * 255, b"n" * 256, b".wh.a", b".wh..wh..opq", b"\xff"]
)
NAMES = st.lists(PARTS, min_size=1, max_size=4).map(b"/".join)
TYPES = st.sampled_from(
    [tar.REGULAR] * 3 + [tar.LINK, tar.SYMLINK, tar.DIRECTORY] * 2 + [tar.FIFO, tar.CHARACTER, b"7"]
)
TARGETS = st.one_of(NAMES, st.sampled_from([b"/", b"a", b"../../b", b"/a/b", b"", b"t" * 4095, b"t" * 430]))
KEYS = st.sampled_from(
    [b"user.x", b"user.", b"trusted.t", b"security.s", b"security.capability", b"system.x", b"other"]
)
XATTRS = st.dictionaries(KEYS, st.sampled_from([b"", b"v", b"w" * 300, b"\0\0\0\2" + bytes(16)]), max_size=2)
EDITS = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=3)


def member(
    name: bytes, type: bytes, link: bytes, mode: int, owner: int, time: int, data: bytes, xattrs: dict[bytes, bytes]
) -> bytes:
    stored = data if type in (tar.REGULAR, b"7") else b""
    made = Entry(name, type, mode, owner, owner, len(stored), time, 0, len(stored), link, xattrs=xattrs)
    return write.head(made) + stored + write.padding(len(stored))


MEMBERS = st.builds(
    member,
    NAMES,
    TYPES,
    TARGETS,
    st.integers(0, 0o7777),
    st.sampled_from([0, 1000, 70000, (1 << 32) - 2, (1 << 32) - 1, 1 << 40]),
    st.sampled_from([0, 1_500_000_000 * 10**9, -(10**9), 4_000_000_000 * 10**9]),
    st.sampled_from([b"", b"x", b"y" * 512, b"z" * 1300]),
    XATTRS,
)
ARCHIVES = st.lists(MEMBERS, max_size=8).map(lambda members: archive(*members))


def outcome_of_apply(data: bytes, root: Path) -> str:
    """Empty, or what was said."""
    root.mkdir()
    try:
        apply.apply(TarReader(ByteStream([data])), str(root), apply.Options(overlay=True))
    except OrlopError as error:
        return str(error)
    return ""


def outcome_of_index(data: bytes, place: Path) -> str | None:
    """Empty, or what was said; None where the archive is left to be unpacked."""
    try:
        index([data], place)
    except NotIndexable:
        return None
    except OrlopError as error:
        return str(error)
    finally:
        assert Path(f"{place}.tar").read_bytes() == data
    return ""


def changed(data: bytes, edits: list[tuple[int, int]], resum: bool) -> bytes:
    made = bytearray(data)
    for at, byte in edits:
        made[at % len(made)] = byte
        start = at % len(made) // 512 * 512
        if resum:  # so that what follows the sum's check is reached as well
            made[start + 148 : start + 156] = b" " * 8
            made[start + 148 : start + 156] = b"%06o\0 " % sum(made[start : start + 512])
    return bytes(made)


def compare(data: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="orlop-index-") as directory:
        place = Path(directory)
        said = outcome_of_index(data, place / "layer")
        if said is None:
            return
        # An entry that is wrong in two ways may be refused for either.
        applied = outcome_of_apply(data, place / "root")
        assert bool(said) == bool(applied), (said, applied)
        if said:
            return
        check_readable(place / "layer")
        if mounts_files():
            return
        with mounted(place / "layer.erofs", [place / "layer.tar"]) as root:
            assert undated(root) == undated(place / "root")


def undated(root: Path) -> dict[str, object]:
    """Directories that no entry of their own dates are as old as the clock says when they are unpacked."""
    shown = seen(root)
    return {
        path: (*about[:2], *about[3:]) if about and re.fullmatch(r"0o4\d{4}", str(about[0])) else about
        for path, about in shown.items()
    }


def check_readable(place: Path) -> None:
    """Our own reader goes through all of an image without complaint."""
    image = os.open(f"{place}.erofs", os.O_RDONLY)
    out = os.open(f"{place}.merged", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        merge([image], out, whole=False)
    finally:
        os.close(image)
        os.close(out)


def corpus() -> list[str]:
    return sorted(path.name for path in CORPUS.iterdir())


@pytest.mark.parametrize("name", corpus())
def test_the_corpus(name: str) -> None:
    compare(bytes.fromhex((CORPUS / name).read_text()))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ARCHIVES)
@example(archive())
def test_an_index_shows_what_unpacking_makes_or_both_refuse(data: bytes) -> None:
    compare(data)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ARCHIVES, EDITS, st.booleans())
def test_an_index_of_a_changed_archive_shows_the_same_or_both_refuse(
    data: bytes, edits: list[tuple[int, int]], resum: bool
) -> None:
    compare(changed(data, edits, resum))


def test_images_are_accepted(tmp_path: Path) -> None:
    """What the corpus makes of it is checked by fsck.erofs, where there is one that can."""
    for name in corpus():
        data = bytes.fromhex((CORPUS / name).read_text())
        if outcome_of_index(data, tmp_path / name) == "":
            check(tmp_path / f"{name}.erofs", [tmp_path / f"{name}.tar"])
