"""What erofs-utils say of images of ours.

Indexes have blocks of 512 bytes, which erofs-utils before 1.6 do not know (Debian 12 has 1.5). The same code, with the
format's block size set to 4096, makes images that they do know: of archives whose data begin at pages.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from index_world import archive, entry

from orlop.layers import tar, write
from orlop.layers.header import BLOCK

PAGE = 4096
CAPABILITY = b"\1\0\0\2" + bytes(16)
INDEX = """
import os, sys
from orlop.erofs import layout
layout.BLOCK_BITS, layout.BLOCK = 12, 4096
from orlop.erofs.merge import merge
from orlop.layers.index import index_layer

def new(path):
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

*archives, merged = sys.argv[1:]
images = [new(f"{path}.erofs") for path in archives]
for path, image in zip(archives, images):
    with open(path, "rb") as file:
        index_layer([file.read()], new(f"{path}.tar"), image)
merge(images, new(merged))
"""
LAYERS: Sequence[Sequence[tuple[bytes, bytes, bytes, dict[str, object]]]] = (
    (
        (b"d/", tar.DIRECTORY, b"", {"mode": 0o2775, "uid": 3, "gid": 70000, "xattrs": {b"user.d": b"d"}}),
        (b"d/empty", tar.REGULAR, b"", {}),
        (b"d/one", tar.REGULAR, b"1" * 511, {"mode": 0o4755, "uid": 1, "gid": 2}),
        (
            b"d/page",
            tar.REGULAR,
            b"2" * PAGE,
            {"xattrs": {b"user.a": b"a", b"security.capability": b"\1\0\0\2" + bytes(16)}},
        ),
        (b"d/more", tar.REGULAR, b"3" * 123_456, {"xattrs": {b"user.a": b"a", b"user.big": b"b" * 3000}}),
        (b"linked", tar.REGULAR, b"linked", {}),
        (b"d/link", tar.LINK, b"", {"link": b"linked", "mode": 0o640, "uid": 5}),
        (b"short", tar.SYMLINK, b"", {"link": b"d/one"}),
        (b"long", tar.SYMLINK, b"", {"link": b"../" * 500 + b"x", "uid": 9}),
        (b"longest", tar.SYMLINK, b"", {"link": b"l" * 4000}),
        (b"fifo", tar.FIFO, b"", {"mode": 0o600}),
        (b"null", tar.CHARACTER, b"", {"major": 1, "minor": 3}),
        (b"x/y/z/implied", tar.REGULAR, b"deep", {}),
        (b"d/" + b"n" * 255, tar.REGULAR, b"long name", {}),
        *((b"many/%d" % number, tar.REGULAR, b"%d" % number, {}) for number in range(3000)),
    ),
    (
        (b"d/.wh.one", tar.REGULAR, b"", {}),
        (b"many/.wh..wh..opq", tar.REGULAR, b"", {}),
        (b"many/again", tar.REGULAR, b"again", {}),
        (b"linked", tar.REGULAR, b"other", {}),
    ),
)


def on_pages(members: Sequence[tuple[bytes, bytes, bytes, dict[str, object]]]) -> Iterator[bytes]:
    """Members of an archive whose data begin at multiples of a page, after comments as long as that needs."""
    at = 0
    for name, type, data, fields in members:
        member = entry(name, type, data, **fields)
        head = len(member) - len(data) - len(write.padding(len(data)))
        size = -(at + head + BLOCK) % PAGE or PAGE
        comment = b"%d comment=" % size
        text = comment + b"x" * (size - len(comment) - 1) + b"\n"
        yield write._block(b"comment", tar.GLOBAL, size=size) + text + member
        at += BLOCK + size + len(member)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("images")
    names = [str(place / str(number)) for number in range(len(LAYERS))]
    for name, members in zip(names, LAYERS, strict=True):
        Path(name).write_bytes(archive(*on_pages(members)) + bytes(PAGE))
    subprocess.run([sys.executable, "-c", INDEX, *names, place / "merged.erofs"], check=True)
    return place


def said(program: str, *arguments: str | Path) -> str:
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}, of erofs-utils")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<E>" not in done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("image", "devices"), [("0", ["0"]), ("1", ["1"]), ("merged", ["0", "1"])])
def test_fsck_accepts_them(images: Path, image: str, devices: list[str]) -> None:
    options = [f"--device={images / device}.tar" for device in devices]
    said("fsck.erofs", *options, images / f"{image}.erofs")


def test_fsck_does_not_accept_everything(images: Path, tmp_path: Path) -> None:
    said("fsck.erofs", "-V")
    data = bytearray((images / "0.erofs").read_bytes())
    data[-2 * PAGE : -PAGE] = b"\xff" * PAGE  # a block of the last directory's entries
    (tmp_path / "damaged").write_bytes(data)
    done = subprocess.run(["fsck.erofs", f"--device={images / '0.tar'}", tmp_path / "damaged"], capture_output=True)
    assert done.returncode


def test_what_fsck_extracts_is_what_was_in_the_archive(images: Path, tmp_path: Path) -> None:
    said("fsck.erofs", f"--device={images / '0.tar'}", f"--extract={tmp_path / 'out'}", images / "0.erofs")
    for name, type, data, fields in LAYERS[0]:
        path = os.fsencode(tmp_path / "out") + b"/" + name.rstrip(b"/")
        status = os.lstat(path)
        match type:
            case tar.REGULAR:
                with open(path, "rb") as file:
                    assert file.read() == data, name
            case tar.SYMLINK:
                assert os.readlink(path) == fields["link"]
            case tar.DIRECTORY:
                assert stat.S_ISDIR(status.st_mode)
        if os.geteuid() == 0 and type in (tar.REGULAR, tar.DIRECTORY) and name != b"linked":
            assert (status.st_uid, status.st_gid) == (fields.get("uid", 0), fields.get("gid", 0)), name
            # It changes the owner last, which takes set-id bits away.
            assert status.st_mode & 0o777 == int(str(fields.get("mode", 0o644))) & 0o777, name


def test_dump_knows_its_way_in_them(images: Path) -> None:
    image, device = images / "0.erofs", f"--device={images / '0.tar'}"
    assert "0xE0F5E1E2" in said("dump.erofs", device, "-s", image)
    shown = said("dump.erofs", device, "--path=/d/more", "-e", image)
    assert "123456" in shown
    assert "# device 1" in shown
    assert "long" in said("dump.erofs", device, "--path=/", "--ls", image)
