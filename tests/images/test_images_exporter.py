"""Exports: what is in the archive, that it is always the same, and that it comes back equal."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import busybox_image
import pytest
from images_world import BUSYBOX, NS, World, described, encoded, entries_of, layout, named, small_image, world

from orlop.core import digest as digests
from orlop.core import media
from orlop.core.descriptor import Descriptor
from orlop.core.image import Image
from orlop.core.platform import Platform
from orlop.errors import DataLoss, InvalidArgument, NotFound
from orlop.images import exporter

HERE = ("linux", busybox_image._architecture())
LAYER = gzip.compress(b"layer")


async def export(w: World, *names: str, **more: Any) -> bytes:
    out = io.BytesIO()

    async def write(data: bytes) -> None:
        out.write(data)

    images = [await w.images.get(NS, name) for name in names]
    await exporter.export_archive(w.content, NS, images, write, **more)
    return out.getvalue()


async def load_index(w: World) -> list[list[bytes]]:
    """An index of two platforms, this host's first."""
    images = [small_image(HERE, [LAYER]), small_image(("linux", "s390x"), [gzip.compress(b"other")])]
    platforms = [{"os": "linux", "architecture": name} for name in (HERE[1], "s390x")]
    manifests = [
        described(image[0], media.OCI_MANIFEST, platform=platform)
        for image, platform in zip(images, platforms, strict=True)
    ]
    index = encoded({"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": manifests})
    await w.load(layout(named(described(index, media.OCI_INDEX)), [index, *images[0], *images[1]]))
    return images


async def test_an_archive_has_these_entries_in_this_order(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.load(busybox_image.oci_layout())
        archive = await export(w, BUSYBOX)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            entries = [(entry.name, entry.mode, entry.mtime, entry.uid) for entry in tar]
        names = [name for name, *_ in entries]
        assert names == sorted(names)
        assert names[:2] == ["blobs", "blobs/sha256"]
        assert names[-3:] == ["index.json", "manifest.json", "oci-layout"]
        assert {mode for _, mode, _, _ in entries} == {0o755, 0o444, 0o644}
        assert {(mtime, uid) for _, _, mtime, uid in entries} == {(0, 0)}
        assert await export(w, BUSYBOX) == archive
        files = entries_of(archive)
        [entry] = json.loads(files["index.json"])["manifests"]
        assert entry["annotations"] == {exporter.IMAGE_NAME: BUSYBOX, exporter.REF_NAME: "latest"}
        [docker] = json.loads(files["manifest.json"])
        assert docker["RepoTags"] == ["busybox:latest"]
        assert docker["Config"] in files


async def test_what_comes_back_is_equal_by_digest(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    async with world(tmp_path / "one") as w, world(tmp_path / "two") as other:
        await load_index(w)
        archive = await export(w, "example.org/x:1", all_platforms=True)
        await other.load(archive)
        assert (await other.images.get(NS, "example.org/x:1")).target.digest == (
            await w.images.get(NS, "example.org/x:1")
        ).target.digest
        assert await export(other, "example.org/x:1", all_platforms=True) == archive


async def test_only_the_platforms_that_are_asked_for_go_out(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        here, other = await load_index(w)
        paths = {f"blobs/sha256/{digests.of(blob)[7:]}" for blob in here}
        others = {f"blobs/sha256/{digests.of(blob)[7:]}" for blob in other}
        assert paths <= (found := entries_of(await export(w, "example.org/x:1")).keys())
        assert not others & found
        assert others <= entries_of(await export(w, "example.org/x:1", platforms=[Platform("linux", "s390x")])).keys()
        with pytest.raises(NotFound, match="no manifest found for platform linux/riscv64"):
            await export(w, "example.org/x:1", platforms=[Platform("linux", "riscv64")])


async def test_names_of_one_image_share_an_entry_for_docker(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.load(busybox_image.oci_layout())
        target = (await w.images.get(NS, BUSYBOX)).target
        by_digest = f"example.org/x@{target.digest}"
        await w.images.create(NS, Image("example.org/x:2", target))
        await w.images.create(NS, Image(by_digest, target))
        files = entries_of(await export(w, BUSYBOX, "example.org/x:2", by_digest))
        [docker] = json.loads(files["manifest.json"])
        assert docker["RepoTags"] == ["busybox:latest", "example.org/x:2"]
        names = [entry["annotations"][exporter.REF_NAME] for entry in json.loads(files["index.json"])["manifests"]]
        assert names == ["latest", "2", by_digest]
        assert "manifest.json" not in entries_of(await export(w, BUSYBOX, docker_manifest=False))


async def test_foreign_layers_may_be_left_out(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        image = small_image(HERE, [LAYER])
        foreign = image[0].replace(b"layer.v1.tar+gzip", b"layer.nondistributable.v1.tar+gzip")
        await w.load(layout(named(described(foreign, media.OCI_MANIFEST)), [foreign, *image[1:]]))
        path = f"blobs/sha256/{digests.of(LAYER)[7:]}"
        assert path in entries_of(await export(w, "example.org/x:1"))
        assert path not in entries_of(await export(w, "example.org/x:1", non_distributable=False))


async def test_a_blob_that_has_changed_on_disk_ends_the_archive(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await load_index(w)
        path = tmp_path / "blobs" / "sha256" / digests.of(LAYER)[7:]
        path.chmod(0o644)
        path.write_bytes(LAYER[:-1] + bytes([LAYER[-1] ^ 1]))
        with pytest.raises(DataLoss, match="unexpected digest"):
            await export(w, "example.org/x:1")


async def test_only_images_are_exported(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.images.create(NS, Image("example.org/x:1", Descriptor("text/plain", digests.of(b"x"), 1)))
        with pytest.raises(InvalidArgument, match="only manifests may be exported"):
            await export(w, "example.org/x:1")
