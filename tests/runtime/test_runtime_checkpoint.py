"""Checkpoints that come back as content: archives of CRIU's files, which may be anybody's."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from orlop.core.descriptor import Descriptor
from orlop.core.scope import Scope
from orlop.errors import InvalidArgument, NotFound
from orlop.runtime.checkpoint import CHECKPOINT_TYPE, unpack_checkpoint

SCOPE = Scope("checkpoints")
DIGEST = "sha256:" + "0" * 64


class Content:
    """One blob, read in small pieces."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.closed = 0

    async def open_reader(self, scope: Scope, digest: str) -> Content:
        if digest != DIGEST:
            raise NotFound(f"content {digest}")
        return self

    async def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + min(length, 1000)]

    async def close(self) -> None:
        self.closed += 1


def archive(*members: tuple[str, bytes, dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


async def unpack(data: bytes, directory: Path, digest: str = DIGEST) -> Content:
    content = Content(data)
    await unpack_checkpoint(content, SCOPE, Descriptor(CHECKPOINT_TYPE, digest, len(data)), directory)  # type: ignore[arg-type]
    return content


async def test_the_files_of_a_checkpoint_are_for_us_alone(tmp_path: Path) -> None:
    data = archive(
        ("./", b"", {"type": tarfile.DIRTYPE}),
        ("./inventory.img", b"x" * 5000, {"mode": 0o4777, "uid": 7}),
        ("pages-1.img", b"", {}),
    )
    content = await unpack(data, tmp_path / "images")
    assert {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()} == {
        "inventory.img": b"x" * 5000, "pages-1.img": b"",
    }  # fmt: skip
    assert (tmp_path / "images").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o7777 for path in (tmp_path / "images").iterdir()} == {0o600}
    assert content.closed == 1


@pytest.mark.parametrize(
    "member",
    [
        ("dump.log", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/shadow"}),
        ("status", b"", {"type": tarfile.LNKTYPE, "linkname": "inventory.img"}),
        ("stats-dump", b"", {"type": tarfile.FIFOTYPE}),
        ("container.log", b"", {"type": tarfile.DIRTYPE}),
        ("null", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
        ("../outside", b"x", {}),
        ("/outside", b"x", {}),
        ("a/b", b"x", {}),
        ("..", b"x", {}),
        (".hidden", b"x", {}),
        ("inventory.img", b"again", {}),
        ("n" * 250, b"x", {}),
        ("a\nb", b"x", {}),
    ],
    ids=lambda member: f"{member[0][:20]!r}",
)
async def test_anything_else_is_refused_and_leaves_nothing(
    tmp_path: Path, member: tuple[str, bytes, dict[str, Any]]
) -> None:
    data = archive(("inventory.img", b"x", {}), member)
    with pytest.raises(Exception, match="checkpoint"):
        await unpack(data, tmp_path / "images")
    assert list(tmp_path.iterdir()) == []


async def test_archives_that_are_none_are_refused(tmp_path: Path) -> None:
    whole = archive(("inventory.img", b"x" * 5000, {}))
    for data in (b"no tar" * 200, whole[:700], whole[:-2000][:3000]):
        with pytest.raises(InvalidArgument, match="checkpoint sha256"):
            await unpack(data, tmp_path / "images")
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFound):
        await unpack(whole, tmp_path / "images", "sha256:" + "1" * 64)


async def test_an_empty_archive_is_an_empty_checkpoint(tmp_path: Path) -> None:
    """CRIU says best what is missing."""
    await unpack(archive(), tmp_path / "images")
    assert list((tmp_path / "images").iterdir()) == []
