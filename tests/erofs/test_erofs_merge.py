"""Images merged into one show what layers unpacked on top of each other are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from index_world import archive, check, entry, index, mounted, mounts_files, seen

from orlop.erofs.layout import Damaged
from orlop.erofs.merge import Merged, merge
from orlop.layers import apply, tar
from orlop.layers.stream import ByteStream
from orlop.layers.tar import TarReader

needs_kernel = pytest.mark.skipif(bool(mounts_files()), reason=mounts_files() or "-")

LAYERS = (
    archive(
        entry(b"etc/", tar.DIRECTORY, mode=0o700, uid=3, xattrs={b"user.etc": b"1"}),
        entry(b"etc/kept", data=b"kept" * 200, xattrs={b"user.k": b"k"}),
        entry(b"etc/gone", data=b"gone"),
        entry(b"etc/changed", data=b"before"),
        entry(b"opaque/", tar.DIRECTORY),
        entry(b"opaque/old", data=b"old"),
        entry(b"dir/", tar.DIRECTORY),
        entry(b"dir/below", data=b"below"),
        entry(b"a", data=b"linked"),
        entry(b"b", tar.LINK, link=b"a"),
        entry(b"c", tar.LINK, link=b"a"),
        entry(b"null", tar.CHARACTER, major=1, minor=3),
        entry(b"link", tar.SYMLINK, link=b"t" * 600),
    ),
    archive(
        entry(b"etc/.wh.gone"),
        entry(b"etc/changed", data=b"after", mode=0o755),
        entry(b"opaque/", tar.DIRECTORY, mode=0o711),
        entry(b"opaque/.wh..wh..opq"),
        entry(b"opaque/new", data=b"new"),
        entry(b".wh.dir"),
        entry(b".wh.b"),
        entry(b".wh.never-there"),
    ),
    archive(
        entry(b"dir/", tar.DIRECTORY, mode=0o750),
        entry(b"dir/above", data=b"above"),
        entry(b"null/", tar.DIRECTORY),
        entry(b"null/full", tar.SYMLINK, link=b"x"),
        entry(b"etc/more/", tar.DIRECTORY),
    ),
)
MODIFIED_BELOW = frozenset(("etc", "opaque"))


def merged(place: Path, layers: Sequence[bytes], name: str = "all", *, whole: bool = True) -> Merged:
    with contextlib.ExitStack() as stack:
        fds = []
        for number, layer in enumerate(layers):
            index([layer], place / f"{name}{number}")
            fds.append(os.open(place / f"{name}{number}.erofs", os.O_RDONLY))
            stack.callback(os.close, fds[-1])
        out = os.open(place / f"{name}.erofs", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        stack.callback(os.close, out)
        return merge(fds, out, whole=whole)


def tars(place: Path, count: int, name: str = "all") -> list[Path]:
    return [place / f"{name}{number}.tar" for number in range(count)]


def unpacked(place: Path, layers: Sequence[bytes]) -> Path:
    root = place / "unpacked"
    root.mkdir()
    for layer in layers:
        apply.apply(TarReader(ByteStream([layer])), str(root))
    return root


@needs_kernel
def test_merged_layers_are_what_unpacking_them_in_turn_makes(tmp_path: Path) -> None:
    made = merged(tmp_path, LAYERS)
    assert made.devices == len(LAYERS)
    assert made.image_size == (tmp_path / "all.erofs").stat().st_size
    check(tmp_path / "all.erofs", tars(tmp_path, 3))
    root = unpacked(tmp_path, LAYERS)
    with mounted(tmp_path / "all.erofs", tars(tmp_path, 3)) as shown:
        assert seen(shown, undated=MODIFIED_BELOW) == seen(root, undated=MODIFIED_BELOW)
        assert (shown / "etc").stat().st_mode & 0o777 == 0o700


@needs_kernel
def test_three_hundred_layers(tmp_path: Path) -> None:
    layers = [archive(entry(b"n/%d" % n, data=b"%d" % n), entry(b"last", data=b"%d" % n)) for n in range(300)]
    assert merged(tmp_path, layers).devices == 300
    with mounted(tmp_path / "all.erofs", tars(tmp_path, 300)) as shown:
        assert (shown / "last").read_text() == "299"
        assert sorted(int((shown / "n" / name).read_text()) for name in os.listdir(shown / "n")) == list(range(300))


@needs_kernel
def test_a_part_of_a_chain_keeps_what_hides_the_rest(tmp_path: Path) -> None:
    """The upper two merged, and merged again with the lowest, are all three merged."""
    merged(tmp_path, LAYERS)
    merged(tmp_path, LAYERS[1:], "upper", whole=False)
    index([LAYERS[0]], tmp_path / "lowest")
    fds = [os.open(tmp_path / f"{name}.erofs", os.O_RDONLY) for name in ("lowest", "upper")]
    out = os.open(tmp_path / "twice.erofs", os.O_RDWR | os.O_CREAT)
    try:
        merge(fds, out)
    finally:
        for fd in (*fds, out):
            os.close(fd)
    check(tmp_path / "upper.erofs", tars(tmp_path, 2, "upper"))
    devices = [tmp_path / "lowest.tar", *tars(tmp_path, 2, "upper")]
    with (
        mounted(tmp_path / "all.erofs", tars(tmp_path, 3)) as once,
        mounted(tmp_path / "twice.erofs", devices) as twice,
    ):
        assert seen(once) == seen(twice)


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    index([LAYERS[0]], tmp_path / "layer")
    image = bytearray((tmp_path / "layer.erofs").read_bytes())
    for at in (1024, 1030, 1050):
        image[at] ^= 1
        (tmp_path / "damaged").write_bytes(image)
        image[at] ^= 1
        fd = os.open(tmp_path / "damaged", os.O_RDONLY)
        out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
        try:
            with pytest.raises(Damaged):
                merge([fd], out)
        finally:
            os.close(fd)
            os.close(out)
