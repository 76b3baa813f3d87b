"""A layer's index, mounted, shows what unpacking the layer makes."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from index_world import SECOND, archive, check, entry, index, mounted, mounts_files, seen, unpack

from orlop.errors import OrlopError
from orlop.layers import tar, write
from orlop.layers.index import NotIndexable, index_layer

needs_kernel = pytest.mark.skipif(bool(mounts_files()), reason=mounts_files() or "-")


def pieces(data: bytes, size: int = 7001) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def assert_equal(data: bytes, place: Path, undated: frozenset[str] = frozenset()) -> None:
    made = index(pieces(data), place / "layer")
    assert (place / "layer.tar").read_bytes() == data
    assert made.tar_size == len(data)
    assert made.image_size == (place / "layer.erofs").stat().st_size
    check(place / "layer.erofs", [place / "layer.tar"])
    unpack(data, place / "root")
    with mounted(place / "layer.erofs", [place / "layer.tar"]) as root:
        assert seen(root, undated=undated) == seen(place / "root", undated=undated)


def acl(*parts: tuple[int, int, int]) -> bytes:
    return b"\2\0\0\0" + b"".join(struct.pack("<HHI", *part) for part in parts)


NOBODY = 0xFFFFFFFF
CAPABILITY = b"\1\0\0\2" + bytes(16)

EVERY_KIND = (
    entry(b"./", tar.DIRECTORY, mode=0o755),
    entry(b"d/", tar.DIRECTORY, mode=0o2775, uid=3, gid=70000),
    entry(b"d/empty"),
    entry(b"d/one", data=b"1" * 511, mode=0o4755, uid=1, gid=2, mtime=7),
    entry(b"d/block", data=b"2" * 512, mtime=2**40 * SECOND // 1000),
    entry(b"d/more", data=b"3" * 123_456),
    entry(b"short", tar.SYMLINK, link=b"d/one", mode=0o777),
    entry(b"long", tar.SYMLINK, link=b"../" * 500 + b"x", uid=9),
    entry(b"longest", tar.SYMLINK, link=b"l" * 4095),
    entry(b"fifo", tar.FIFO, mode=0o600),
    entry(b"null", tar.CHARACTER, major=1, minor=3, mode=0o666),
    entry(b"disk", tar.BLOCK_DEVICE, major=4095, minor=1048575, mode=0o660),
    entry(b"x/y/z/implied", data=b"deep"),
    entry("d/ünï\udcff".encode("utf-8", "surrogateescape"), data=b"name"),
    entry(b"d/" + b"n" * 255, data=b"long name"),
    entry(b"linked", data=b"linked", mode=0o600),
    entry(b"d/link", tar.LINK, link=b"linked", mode=0o640, uid=5, mtime=9 * SECOND),
    entry(b"d/again", tar.LINK, link=b"./d/link", mode=0o640),
    entry(b"d/symlink", tar.LINK, link=b"short"),
)

UNDATED = frozenset(("x", "x/y", "x/y/z"))


@needs_kernel
def test_every_kind_of_entry(tmp_path: Path) -> None:
    assert_equal(archive(*EVERY_KIND), tmp_path, UNDATED)


@needs_kernel
def test_extended_attributes(tmp_path: Path) -> None:
    listed = acl((1, 7, NOBODY), (2, 4, 12), (4, 5, NOBODY), (16, 7, NOBODY), (32, 1, NOBODY))
    attributes = {b"user.a": b"1", b"user.b": b"", b"security.x": b"v" * 300, b"security.capability": CAPABILITY}
    data = archive(
        entry(b"f", xattrs=attributes, data=b"x" * 600),
        entry(b"g", xattrs=attributes, data=b"x"),
        entry(b"d/", tar.DIRECTORY, mode=0o750, xattrs={b"user.d": b"d", b"trusted.overlay.opaque": b"y"}),
        entry(b"d/", tar.DIRECTORY, mode=0o700, xattrs={b"user.e": b"e"}),
        entry(b"s", tar.SYMLINK, link=b"t" * 400, xattrs={b"user.no": b"1", b"security.s": b"s" * 90}),
        entry(b"p", tar.FIFO, xattrs={b"user.no": b"1", b"security.p": b"p"}),
        entry(b"acl", xattrs={b"system.posix_acl_access": listed}, mode=0o640, data=b"x"),
        entry(b"other", xattrs={b"system.unknown": b"1", b"user.many": b"m" * 1000}),
        entry(b"h", tar.LINK, link=b"f", mode=0o600),
        entry(b"i", tar.LINK, link=b"g", xattrs={b"user.i": b"i", b"security.capability": CAPABILITY}),
        entry(b"j", tar.LINK, link=b"acl", mode=0o711),
        entry(b"k", tar.LINK, link=b"s", xattrs={b"security.k": b"k" * 200}),
    )
    assert_equal(data, tmp_path)


@needs_kernel
def test_what_is_replaced(tmp_path: Path) -> None:
    data = archive(
        entry(b"f", data=b"first"),
        entry(b"f", data=b"second", mode=0o600),
        entry(b"d/x", data=b"gone"),
        entry(b"kept", tar.LINK, link=b"d/x"),
        entry(b"d", data=b"a file"),
        entry(b"e/", tar.DIRECTORY),
        entry(b"e/g", data=b"g"),
        entry(b"e", tar.SYMLINK, link=b"new/place"),
        entry(b"e/through", data=b"through the link"),
        entry(b"h", data=b"h"),
        entry(b"h/", tar.DIRECTORY, mode=0o711),
        entry(b"h/i", data=b"i"),
        entry(b"old", data=b"old"),
        entry(b"new-name", tar.LINK, link=b"old"),
        entry(b"old", data=b"not so old"),
        entry(b"self", data=b"self"),
        entry(b"self", tar.LINK, link=b"self"),
        entry(b"twice", tar.LINK, link=b"self"),
        entry(b"twice", tar.LINK, link=b"self"),
    )
    assert_equal(data, tmp_path, frozenset(("new", "new/place")))


@needs_kernel
def test_whiteouts(tmp_path: Path) -> None:
    data = archive(
        entry(b"d/", tar.DIRECTORY),
        entry(b"d/.wh.gone", uid=7, gid=8),
        entry(b"d/.wh..wh..opq"),
        entry(b"d/stays", data=b"x"),
        entry(b".wh.both"),
        entry(b"both", data=b"both"),
        entry(b"either", data=b"e"),
        entry(b".wh.either"),
        entry(b"full/x", data=b"e"),
        entry(b".wh.full"),
        entry(b".wh..wh.plnk"),
        entry(b".wh..wh..opq"),
        entry(b"in/.wh.implied"),
        entry(b"in/other/.wh..wh..opq"),
    )
    assert_equal(data, tmp_path, frozenset(("in", "in/other")))


def test_a_link_to_a_lower_layer_is_not_indexable(tmp_path: Path) -> None:
    data = archive(entry(b"a", data=b"x"), entry(b"b", tar.LINK, link=b"below/file"), entry(b"c", data=b"y" * 9999))
    with pytest.raises(NotIndexable, match=r"below/file"):
        index(pieces(data), tmp_path / "layer")
    assert (tmp_path / "layer.tar").read_bytes() == data


def test_a_damaged_archive_is_written_and_refused(tmp_path: Path) -> None:
    data = archive(entry(b"a", data=b"x"))[:512] + b"x" * 5000
    with pytest.raises(OrlopError, match=r"archive/tar: invalid tar header"):
        index(pieces(data), tmp_path / "layer")
    assert (tmp_path / "layer.tar").read_bytes() == data


def test_the_same_archive_makes_the_same_image(tmp_path: Path) -> None:
    data = archive(*EVERY_KIND)
    index(pieces(data), tmp_path / "one")
    index(pieces(data, 1), tmp_path / "two")
    assert (tmp_path / "one.erofs").read_bytes() == (tmp_path / "two.erofs").read_bytes()
    index([archive(*EVERY_KIND[1:])], tmp_path / "three")
    assert os.path.getsize(tmp_path / "three.erofs")
    assert (tmp_path / "one.erofs").read_bytes()[1024:1280] != (tmp_path / "three.erofs").read_bytes()[1024:1280]


@needs_kernel
@pytest.mark.parametrize("form", ["gnu", "posix", "ustar"])
def test_a_real_tree_that_tar_archived(tmp_path: Path, form: str) -> None:
    """Programs and documents of this machine, a sparse file, and names and links too long for one header."""
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    for name in ("sh", "ls", "true"):
        shutil.copy(f"/bin/{name}", tree / "bin" / name)
    (tree / "bin/link").hardlink_to(tree / "bin/ls")
    if Path("/usr/share/doc/apt").is_dir():
        shutil.copytree("/usr/share/doc/apt", tree / "doc", symlinks=True)
    if form != "ustar":
        deep = tree / ("deep" * 20) / ("er" * 30)
        deep.mkdir(parents=True)
        (deep / "file").write_text("x")
        (deep / "symlink").symlink_to("t" * 300)
        with (tree / "sparse").open("wb") as file:
            for at in (0, 1 << 20, 5 << 20):
                file.seek(at)
                file.write(b"data" * 1024)
            file.truncate(8 << 20)
    command = ["tar", "-c", f"--format={form}", "--numeric-owner", "-C", str(tree), "."]
    if form != "ustar":
        command.insert(2, "--sparse")
    data = subprocess.run(command, capture_output=True, check=True).stdout
    assert_equal(data, tmp_path)


@needs_kernel
def test_a_file_of_more_than_four_gibibytes(tmp_path: Path) -> None:
    size, end = 6 << 30, 4096
    records = {
        b"GNU.sparse.size": b"%d" % size,
        b"GNU.sparse.map": b"0,4096,%d,%d" % (size - end, end),
    }
    text = b"".join(write._records(records))
    data = b"a" * 4096 + b"b" * end
    head = write._block(b"x", b"x", size=len(text)) + text + write.padding(len(text))
    index([head + entry(b"big", data=data) + write.END], tmp_path / "layer")
    check(tmp_path / "layer.erofs", [tmp_path / "layer.tar"])
    with mounted(tmp_path / "layer.erofs", [tmp_path / "layer.tar"]) as root, (root / "big").open("rb") as file:
        assert os.fstat(file.fileno()).st_size == size
        assert file.read(5000) == b"a" * 4096 + bytes(904)
        file.seek(size - end - 10)
        assert file.read() == bytes(10) + b"b" * end


@needs_kernel
def test_a_large_directory(tmp_path: Path) -> None:
    names = [b"%x-%d" % (number * 2654435761 % 2**32, number) for number in range(12_000)]
    index([archive(*(entry(b"d/" + name, data=name) for name in names))], tmp_path / "layer")
    with mounted(tmp_path / "layer.erofs", [tmp_path / "layer.tar"]) as root:
        directory = os.fsencode(root / "d")
        assert sorted(os.listdir(directory)) == sorted(names)
        for name in names[::7]:
            with open(directory + b"/" + name, "rb") as file:
                assert file.read() == name
            assert not os.path.lexists(directory + b"/" + name + b"x")


def test_names_of_any_length_are_refused_or_bounded(tmp_path: Path) -> None:
    with pytest.raises(OrlopError, match="header field too long"):
        index([archive(entry(b"n" * 70_000))], tmp_path / "long")
    with pytest.raises(OrlopError, match="file name too long"):
        index([archive(entry(b"d/" + b"n" * 256))], tmp_path / "component")
    made = index([archive(entry(b"d/" * 2000 + b"f", data=b"x"))], tmp_path / "deep")
    assert (made.entries, made.implied) == (2001, 2000)


def test_directories_on_the_way_count_as_entries(tmp_path: Path) -> None:
    data = archive(*(entry(b"%d/" % number + b"d/" * 100 + b"f") for number in range(10)))
    fds = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("tar", "image")]
    try:
        with pytest.raises(OrlopError, match="archive of more than 900 entries"):
            index_layer([data], *fds, entries_limit=900)
    finally:
        for fd in fds:
            os.close(fd)
    assert (tmp_path / "tar").read_bytes() == data
