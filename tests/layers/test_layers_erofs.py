"""Layers that are EROFS images by their media type."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import zstandard

from orlop.core import digest as digests
from orlop.core.content import ContentStore
from orlop.core.descriptor import Descriptor
from orlop.core.layer import Traits
from orlop.core.mount import Mount
from orlop.errors import FailedPrecondition, InvalidArgument, Unimplemented
from orlop.layers.erofs import ErofsDiffer
from orlop.layers.keep import Keepers
from orlop.snapshots.image_of_tree import write_image

TYPE = "application/vnd.erofs.layer.v1"
MOUNTS = [Mount("bind", "/here", ("rw",))]


class Keeper:
    takes_images = True

    def __init__(self, directory: Path) -> None:
        self._path = directory / "image"
        self.kept: tuple[str, str] | None = None
        self.as_is = True

    def place(self, mounts: Sequence[Mount]) -> AbstractContextManager[Any] | None:
        return self._place() if mounts == MOUNTS else None

    @contextmanager
    def _place(self) -> Iterator[Any]:
        self.index = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            yield self
        finally:
            os.close(self.index)

    def keep(self, diff_id: str, source: str, traits: Traits) -> None:
        self.kept = diff_id, source

    def current(self, mounts: Sequence[Mount]) -> Sequence[Mount]:
        return mounts

    @property
    def image(self) -> bytes:
        return self._path.read_bytes()


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    (tmp_path / "tree").mkdir()
    with (tmp_path / "i").open("w+b") as one, (tmp_path / "d").open("w+b") as other:
        write_image(str(tmp_path / "tree"), one.fileno(), other.fileno())
    return (tmp_path / "i").read_bytes()


def differ(keeper: Any) -> ErofsDiffer:
    content: ContentStore = None  # type: ignore[assignment]  # not asked: the bytes are given
    return ErofsDiffer(content, Keepers([keeper]))


@pytest.mark.parametrize("suffix", ["", "+zstd"])
async def test_an_image_is_kept_as_it_is(tmp_path: Path, image: bytes, suffix: str) -> None:
    blob = zstandard.compress(image) if suffix else image
    layer = Descriptor(TYPE + suffix, digests.of(blob), len(blob))
    keeper = Keeper(tmp_path)
    done = await differ(keeper).apply_stream(layer, [blob[:100], blob[100:]], MOUNTS)
    assert done == Descriptor(TYPE, digests.of(image), len(image))
    assert keeper.image == image
    assert keeper.kept == (digests.of(image), layer.digest)


async def test_others_are_left_to_other_differs(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    layer = Descriptor("application/vnd.oci.image.layer.v1.tar", "sha256:" + "0" * 64, 1)
    with pytest.raises(Unimplemented):
        await differ(keeper).apply_stream(layer, [b"x"], MOUNTS)
    with pytest.raises(Unimplemented):
        await differ(keeper).compare(None, [], [])  # type: ignore[arg-type]


async def test_what_is_no_image_or_goes_nowhere_is_refused(tmp_path: Path, image: bytes) -> None:
    keeper = Keeper(tmp_path)
    layer = Descriptor(TYPE, digests.of(image), len(image))
    with pytest.raises(InvalidArgument, match="is no EROFS image"):
        await differ(keeper).apply_stream(layer, [b"x" * 4096], MOUNTS)
    with pytest.raises(FailedPrecondition, match="only the snapshotter erofs takes it"):
        await differ(keeper).apply_stream(layer, [image], [Mount("bind", "/there")])
    with pytest.raises(InvalidArgument, match=r"unsupported erofs layer suffix: gzip"):
        await differ(keeper).apply_stream(Descriptor(f"{TYPE}+gzip", layer.digest, 1), [image], MOUNTS)
    assert keeper.kept is None
