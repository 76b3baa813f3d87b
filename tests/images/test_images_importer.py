"""Importing archives, good and hostile."""

from __future__ import annotations

import asyncio
import gzip
import io
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from images_world import (
    ARCHITECTURE,
    BUSYBOX,
    NS,
    World,
    archive_of,
    busybox_image,
    described,
    encoded,
    entries_of,
    layout,
    named,
    small_image,
    world,
)

from orlop.core import digest as digests
from orlop.core import media
from orlop.core.image import Image
from orlop.errors import FailedPrecondition, InvalidArgument, NotFound, OrlopError, ResourceExhausted, Unknown
from orlop.images import documents, importer

OCI = busybox_image.oci_layout()
DOCKER = busybox_image.docker_save()
FORMS: list[Callable[[bytes], bytes]] = [bytes, gzip.compress, zstandard.ZstdCompressor().compress]


async def layers_of(w: World, image: Image) -> list[bytes]:
    """The layers of an image, decompressed."""
    manifest = await documents.read_manifest(w.content, NS, image.target)
    layers = []
    for layer in manifest.layers:
        reader = await w.content.open_reader(NS, layer.digest)
        data = await reader.read(0, 100 << 20)
        await reader.close()
        layers.append(gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data)
    return layers


async def is_unchanged(w: World) -> bool:
    """Whether there is no image, and no part of a file."""
    return not await w.names() and not await w.content.statuses(NS)


@pytest.mark.parametrize("form", FORMS, ids=["plain", "gzip", "zstd"])
@pytest.mark.parametrize(("archive", "name"), [(OCI, BUSYBOX), (DOCKER, "docker.io/library/busybox:docker")])
async def test_an_archive_is_imported_however_it_is_compressed(
    tmp_path: Path, archive: bytes, name: str, form: Callable[[bytes], bytes]
) -> None:
    async with world(tmp_path) as w:
        [image] = await w.load(form(archive))
        assert image.name == name
        assert await w.names() == [name]
        assert await layers_of(w, image) == [busybox_image.layer()]
        manifest = await documents.read_manifest(w.content, NS, image.target)
        assert await w.labels(image.target.digest) == {
            "containerd.io/gc.ref.content.config": manifest.config.digest,
            "containerd.io/gc.ref.content.l.0": manifest.layers[0].digest,
        }
        assert not await w.content.statuses(NS)


@pytest.mark.parametrize("archive", [OCI, DOCKER])
async def test_the_files_of_an_archive_come_in_any_order(tmp_path: Path, archive: bytes) -> None:
    async with world(tmp_path) as w:
        first = await w.load(archive)
        files = list(entries_of(archive).items())
        for order in (files[::-1], files[1:] + files[:1], files[2:] + files[:2]):
            again = await w.load(archive_of([(f"./{path}", data) for path, data in order]))
            assert [image.target for image in again] == [image.target for image in first]


async def test_importing_again_points_the_name_at_what_came_last(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        [image] = await w.load(OCI)
        other = small_image()
        [again] = await w.load(layout(named(described(other[0], media.OCI_MANIFEST), BUSYBOX), other))
        assert again.name == image.name
        assert (await w.images.get(NS, BUSYBOX)).target == again.target != image.target


async def test_two_imports_of_one_archive_at_a_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        done = await asyncio.gather(*(w.load(archive) for archive in (OCI, OCI, DOCKER, DOCKER)))
        assert [len(images) for images in done] == [1, 1, 1, 1]
        assert len(await w.names()) == 2


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "../first/layer.tar"),
        (tarfile.SYMTYPE, "/first/layer.tar"),
        (tarfile.LNKTYPE, "first/layer.tar"),
    ],
)
async def test_a_layer_that_is_a_link_is_what_it_leads_to(tmp_path: Path, kind: bytes, target: str) -> None:
    layer = busybox_image.layer()
    files = {"first/layer.tar": layer, "config.json": encoded({"os": "linux", "architecture": ARCHITECTURE})}
    entry = {"Config": "config.json", "RepoTags": ["a:1", "a:2"], "Layers": ["first/layer.tar", "second/layer.tar"]}
    files["manifest.json"] = encoded([entry])
    async with world(tmp_path) as w:
        images = await w.load(archive_of(files, {"second/layer.tar": target}, kind))
        assert [image.name for image in images] == ["docker.io/library/a:1", "docker.io/library/a:2"]
        assert await layers_of(w, images[0]) == [layer, layer]


@pytest.mark.parametrize(
    "links",
    [
        {},
        {"l.tar": "l.tar"},
        {"l.tar": "m.tar", "m.tar": "l.tar"},
        {"l.tar": "../../../etc/passwd"},
        {"l.tar": "/etc/passwd"},
    ],
)
async def test_a_layer_that_leads_nowhere_is_refused(tmp_path: Path, links: dict[str, str]) -> None:
    files = {"c.json": b"{}", "manifest.json": encoded([{"Config": "c.json", "RepoTags": ["a"], "Layers": ["l.tar"]}])}
    async with world(tmp_path) as w:
        with pytest.raises(InvalidArgument, match=r"names the file 'l\.tar', which is not in it"):
            await w.load(archive_of(files, links))
        assert await is_unchanged(w)


async def test_the_layers_of_a_docker_archive_are_typed_by_what_they_are(tmp_path: Path) -> None:
    layer = busybox_image.layer()
    files = {f"{number}.tar": form(layer) for number, form in enumerate(FORMS)} | {"c.json": b"{}"}
    files["manifest.json"] = encoded([{"Config": "c.json", "RepoTags": ["a"], "Layers": ["0.tar", "1.tar", "2.tar"]}])
    async with world(tmp_path) as w:
        [image] = await w.load(archive_of(files))
        manifest = await documents.read_manifest(w.content, NS, image.target)
        assert [one.media_type for one in manifest.layers] == [
            media.DOCKER_LAYER,
            media.DOCKER_LAYER_GZIP,
            media.DOCKER_LAYER_ZSTD,
        ]


async def test_a_name_comes_from_the_annotations_or_from_the_caller(tmp_path: Path) -> None:
    image = small_image()
    pointer = described(image[0], media.OCI_MANIFEST)

    def archive(**annotations: str) -> bytes:
        return layout({"schemaVersion": 2, "manifests": [pointer | {"annotations": annotations}]}, image)

    full, tag = importer.IMAGE_NAME, importer.REF_NAME
    async with world(tmp_path) as w:
        assert (await w.load(archive(**{full: "h.io/a:1", tag: "2"})))[0].name == "h.io/a:1"
        assert (await w.load(archive(**{tag: "h.io/b:1"})))[0].name == "h.io/b:1"
        assert (await w.load(archive(**{tag: "7"}), "c"))[0].name == "docker.io/library/c:7"
        assert (await w.load(archive(**{tag: "7"}), "c:8"))[0].name == "docker.io/library/c:8"
        assert (await w.load(archive(), "d"))[0].name == "docker.io/library/d:latest"
        for nameless in (archive(**{tag: "7"}), archive(), DOCKER.replace(b'["busybox:docker"]', b"null" + b" " * 14)):
            with pytest.raises(InvalidArgument, match=r"no image in .* has a name"):
                await w.load(nameless)
        with pytest.raises(InvalidArgument, match="image name"):
            await w.load(archive(**{full: "Not/A/Name:1"}))


async def test_an_index_is_imported_with_the_part_of_it_that_is_there(tmp_path: Path) -> None:
    here, away = small_image(), small_image(("linux", "s390x"))
    index = encoded(
        {
            "schemaVersion": 2,
            "mediaType": media.OCI_INDEX,
            "manifests": [described(one[0], media.OCI_MANIFEST) for one in (here, away)],
        }
    )
    async with world(tmp_path) as w:
        [image] = await w.load(layout(named(described(index, media.OCI_INDEX)), [*here, index]))
        assert await w.labels(image.target.digest) == {
            "containerd.io/gc.ref.content.m.0": digests.of(here[0]),
            "containerd.io/gc.ref.content.m.1": digests.of(away[0]),
        }
        assert "containerd.io/gc.ref.content.config" in await w.labels(digests.of(here[0]))


async def test_an_archive_of_neither_format_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with pytest.raises(InvalidArgument, match="unrecognized image format"):
            await w.load(archive_of({"x": b"y"}))
        with pytest.raises(InvalidArgument, match=r"unsupported OCI version 2\.0\.0"):
            await w.load(layout({"manifests": []}, version="2.0.0"))
        with pytest.raises(InvalidArgument, match=r"missing index\.json in OCI layout 1\.0\.0"):
            await w.load(archive_of({"oci-layout": encoded({"imageLayoutVersion": "1.0.0"})}))
        assert await is_unchanged(w)


@pytest.mark.parametrize(
    "data",
    [b"", b"not a tar at all" * 1000, OCI[:5000], gzip.compress(OCI)[:-9], b"\x1f\x8b\x08" + b"x" * 100, OCI[:-30_000]],
)
async def test_what_is_damaged_is_refused(tmp_path: Path, data: bytes) -> None:
    async with world(tmp_path) as w:
        with pytest.raises((Unknown, InvalidArgument)):
            await w.load(data)
        assert await is_unchanged(w)


async def test_a_blob_whose_path_promises_another_digest_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with pytest.raises(FailedPrecondition, match="unexpected commit digest"):
            await w.load(OCI.replace(b'"layers"', b'"lxyers"'))
        assert await is_unchanged(w)


async def test_a_manifest_that_is_missing_or_of_another_size_is_refused(tmp_path: Path) -> None:
    image = small_image()
    pointer = described(image[0], media.OCI_MANIFEST)
    async with world(tmp_path) as w:
        with pytest.raises(NotFound, match=pointer["digest"]):
            await w.load(layout(named(pointer), image[1:]))
        with pytest.raises(InvalidArgument, match="its descriptor says 5"):
            await w.load(layout(named(pointer | {"size": 5}), image))
        assert await is_unchanged(w)


@pytest.mark.parametrize("name", ["index.json", "manifest.json", "oci-layout"])
async def test_a_describing_file_of_10_gib_is_refused_before_it_is_read(tmp_path: Path, name: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = 10 << 30
    async with world(tmp_path) as w:
        with pytest.raises(InvalidArgument, match=f"{name} has {10 << 30} bytes, at most {20 << 20} are read"):
            await w.load(entry.tobuf() + b"\0" * 4096)


async def test_a_sparse_file_of_10_gib_is_refused(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("index.json")
    entry.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(10 << 30), "GNU.sparse.map": "0,1"}
    entry.pax_headers |= {"GNU.sparse.numblocks": "1"}
    entry.size = 1
    async with world(tmp_path) as w:
        with pytest.raises(InvalidArgument, match="sparse file"):
            await w.load(entry.tobuf(tarfile.PAX_FORMAT) + b"x" + b"\0" * 4095)


async def test_a_describing_file_that_comes_twice_is_refused(tmp_path: Path) -> None:
    files = list(entries_of(OCI).items())
    async with world(tmp_path) as w:
        with pytest.raises(InvalidArgument, match=r"index\.json comes twice"):
            await w.load(archive_of([*files, ("./index.json", b"{}")]))


async def test_an_archive_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "MAX_FILES", 10)
    async with world(tmp_path) as w:
        with pytest.raises(ResourceExhausted, match="more than 10 entries"):
            await w.load(archive_of([("x", b"")] * 11))


@pytest.mark.parametrize(
    "index",
    [
        b"[]", b"{", b"[" * 100_000, encoded({"manifests": 1}), encoded({"manifests": [{}]}),
        encoded(named({"mediaType": media.OCI_MANIFEST, "digest": "sha256:../../../etc/passwd", "size": 1})),
        encoded(named({"mediaType": media.OCI_MANIFEST, "digest": "sha256:" + "0" * 64, "size": -1})),
        b'{"manifests":[],"Manifests":[]}', encoded({"manifests": [], "layers": []}),
        encoded({"manifests": [{"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": 1}] * 100_000}),
    ],
)  # fmt: skip
async def test_a_hostile_index_is_refused(tmp_path: Path, index: bytes) -> None:
    async with world(tmp_path) as w:
        with pytest.raises(InvalidArgument):
            await w.load(layout(index))
        assert await is_unchanged(w)


@pytest.mark.parametrize(
    "manifest",
    [
        b"{}",
        b"[1]",
        b'[{"Config":1}]',
        encoded([{"Config": "c", "Layers": ["l"] * 1001}]),
        encoded([{"Config": "c"}] * 5),
    ],
)
async def test_a_hostile_docker_manifest_is_refused(tmp_path: Path, manifest: bytes) -> None:
    async with world(tmp_path) as w:
        with pytest.raises(InvalidArgument):
            await w.load(archive_of({"manifest.json": manifest, "c": b"{}"}))
        assert await is_unchanged(w)


async def test_indexes_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    image = small_image()
    blobs, inner = list(image), described(image[0], media.OCI_MANIFEST)
    for _ in range(10):
        blobs.append(encoded({"schemaVersion": 2, "manifests": [inner]}))
        inner = described(blobs[-1], media.OCI_INDEX)
    async with world(tmp_path) as w:
        with pytest.raises(InvalidArgument, match="nested more than 8 deep"):
            await w.load(layout(named(inner), blobs))
        assert await is_unchanged(w)


async def test_an_index_that_names_one_document_many_times_reads_it_once(tmp_path: Path) -> None:
    image = small_image()
    blobs, inner = list(image), described(image[0], media.OCI_MANIFEST)
    for _ in range(7):  # 1000 to the seventh, were each followed
        blobs.append(encoded({"schemaVersion": 2, "manifests": [inner] * 1000}))
        inner = described(blobs[-1], media.OCI_INDEX)
    async with world(tmp_path) as w:
        [loaded] = await w.load(layout(named(inner), blobs))
        assert (await w.labels(loaded.target.digest))["containerd.io/gc.ref.content.999"]


async def test_progress_is_told_as_bytes_read(tmp_path: Path) -> None:
    told: list[int] = []
    async with world(tmp_path) as w:
        await importer.import_archive(w.content, w.images, NS, io.BytesIO(DOCKER), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == len(DOCKER)


async def test_an_import_that_is_cancelled_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 1 << 20:
                reached.set()
                go_on.wait(30)
            return super().read(size)

    archive = archive_of({f"blobs/{number}": bytes([number]) * (3 << 20) for number in range(3)})
    async with world(tmp_path) as w:
        task = asyncio.ensure_future(importer.import_archive(w.content, w.images, NS, Slow(archive)))
        await asyncio.to_thread(reached.wait, 30)
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await is_unchanged(w)


async def test_errors_of_hostile_archives_are_of_our_own_kinds(tmp_path: Path) -> None:
    """Each byte of the head of a small archive is damaged in turn."""
    image = small_image()
    archive = bytearray(layout(named(described(image[0], media.OCI_MANIFEST)), image))
    async with world(tmp_path) as w:
        for at in range(0, len(archive), 97):
            damaged = bytearray(archive)
            damaged[at] ^= 0x41
            try:
                images = await w.load(bytes(damaged))
            except OrlopError:
                continue
            assert images  # what was damaged had no meaning
        assert not await w.content.statuses(NS)
