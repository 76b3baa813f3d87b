"""Archives that come: for which platforms, and in which form their layers are kept."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from images_world import NS, archive_of, described, encoded, layout, small_image
from transfer_world import AMD64, ARM64, PullWorld, layer_of, pull_world

from orlop.core import digest as digests
from orlop.core import media
from orlop.core.content import write_whole
from orlop.core.labels import UNCOMPRESSED
from orlop.core.platform import Platform
from orlop.core.transfer import ImageReference, ImportEnd, StoreEnd, UnpackRequest
from orlop.errors import NotFound
from orlop.images import documents
from orlop.transfer.archive import Archives
from orlop.transfer.locks import Locks

LAYERS = {AMD64: layer_of("amd"), ARM64: layer_of("arm")}
NAMES = {AMD64: "docker.io/library/amd:1", ARM64: "docker.io/library/arm:1"}


async def load(world: PullWorld, archive: bytes, *, force_compress: bool = False, **end: Any) -> list[str]:
    """Imports an archive; the names that there are afterwards."""

    async def pieces() -> AsyncIterator[bytes]:
        yield archive

    archives = Archives(world.stores, world.puller().targets, Locks())
    prefix = ImageReference("import", is_prefix=True, allow_overwrite=True)
    store = StoreEnd("", extra_references=[prefix], **end)
    await archives.import_archive(NS, ImportEnd(pieces(), force_compress=force_compress), store, lambda _: None)
    return sorted(await world.names())


def docker(layers: Mapping[Platform, bytes]) -> bytes:
    """What `docker save` writes of one image a platform."""
    files: dict[str, bytes] = {}
    listed = []
    for number, (platform, layer) in enumerate(layers.items()):
        config = {
            "os": platform.os,
            "architecture": platform.architecture,
            "rootfs": {"type": "layers", "diff_ids": [digests.of(layer)]},
        }
        files |= {f"{number}.json": encoded(config), f"{number}/layer.tar": layer}
        name = NAMES[platform].removeprefix("docker.io/library/")
        listed.append({"Config": f"{number}.json", "RepoTags": [name], "Layers": [f"{number}/layer.tar"]})
    return archive_of(files | {"manifest.json": encoded(listed)})


def index_of_two(*, without: Platform | None = None) -> tuple[bytes, dict[Platform, list[bytes]]]:
    """A layout with an index of two platforms; the blobs of each, manifest first. Those of `without` are not in it."""
    blobs: dict[Platform, list[bytes]] = {}
    entries = []
    for platform, layer in LAYERS.items():
        blobs[platform] = small_image((platform.os, platform.architecture), [gzip.compress(layer, mtime=0)])
        shown = {"os": platform.os, "architecture": platform.architecture}
        entries.append(described(blobs[platform][0], media.OCI_MANIFEST, platform=shown))
    index = encoded({"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": entries})
    top = described(index, media.OCI_INDEX, annotations={"io.containerd.image.name": "docker.io/library/two:1"})
    held = [blob for platform, own in blobs.items() if platform != without for blob in own]
    return layout({"schemaVersion": 2, "manifests": [top]}, [index, *held]), blobs


async def is_kept(world: PullWorld, manifest: bytes) -> bool:
    """Whether a manifest keeps its content."""
    labels = (await world.content.info(NS, digests.of(manifest))).labels
    return any(key.startswith("containerd.io/gc.ref.content.") for key in labels)


async def test_of_a_docker_archive_only_the_images_for_the_platforms_get_a_name(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        assert await load(world, docker(LAYERS), platforms=[ARM64]) == [NAMES[ARM64]]
        assert await load(world, docker(LAYERS)) == sorted(NAMES.values())


async def test_an_archive_with_nothing_for_the_platforms_is_refused_and_says_what_it_has(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        with pytest.raises(NotFound, match=r"no image for linux/amd64 \(has linux/arm64\)"):
            await load(world, docker({ARM64: LAYERS[ARM64]}), platforms=[AMD64])
        archive, _ = index_of_two()
        with pytest.raises(NotFound, match="no image for linux/s390x"):
            await load(world, archive, platforms=[Platform("linux", "s390x")])
        assert await world.names() == []


async def test_of_an_index_the_content_of_other_platforms_is_not_kept(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        archive, blobs = index_of_two()
        assert await load(world, archive, platforms=[AMD64]) == ["docker.io/library/two:1"]
        assert [await is_kept(world, blobs[one][0]) for one in (AMD64, ARM64)] == [True, False]
        await load(world, archive, platforms=[AMD64], all_metadata=True)
        assert await is_kept(world, blobs[ARM64][0])


async def test_at_most_as_many_manifests_are_kept_as_are_wanted(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        archive, blobs = index_of_two()
        await load(world, archive, platforms=[ARM64, AMD64], manifest_limit=1)
        assert [await is_kept(world, blobs[one][0]) for one in (AMD64, ARM64)] == [False, True]


async def test_a_platform_that_is_asked_for_may_not_be_missing(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        archive, blobs = index_of_two(without=ARM64)
        with pytest.raises(NotFound, match=digests.of(blobs[ARM64][0])):
            await load(world, archive, platforms=[ARM64])
        assert await load(world, archive, platforms=[AMD64]) == ["docker.io/library/two:1"]
        assert await load(world, archive) == ["docker.io/library/two:1"]


async def layers_of(world: PullWorld, name: str) -> list[tuple[str, bytes]]:
    """The layers of an image: their types and blobs."""
    image = await world.images.get(NS, name)
    manifest = await documents.read_manifest(world.content, NS, image.target)
    found = []
    for layer in manifest.layers:
        reader = await world.content.open_reader(NS, layer.digest)
        found.append((layer.media_type, await reader.read(0, layer.size)))
        await reader.close()
    return found


async def test_plain_layers_of_a_docker_archive_are_compressed_where_that_is_asked_for(tmp_path: Path) -> None:
    layer = LAYERS[AMD64]
    async with pull_world(tmp_path) as world:
        archive = docker({AMD64: layer})
        await load(world, archive, force_compress=True, unpacks=[UnpackRequest(AMD64, "native")])
        [(kind, blob)] = await layers_of(world, NAMES[AMD64])
        assert (kind, gzip.decompress(blob)) == (media.DOCKER_LAYER_GZIP, layer)
        assert (await world.labels(digests.of(blob)))[UNCOMPRESSED] == digests.of(layer)
        await world.snapshots.stat(NS, "native", digests.of(layer))


async def test_plain_layers_stay_plain_where_nothing_is_said(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        await load(world, docker({AMD64: LAYERS[AMD64]}))
        assert await layers_of(world, NAMES[AMD64]) == [(media.DOCKER_LAYER, LAYERS[AMD64])]


async def test_a_layer_that_is_here_in_a_compressed_form_is_taken_so(tmp_path: Path) -> None:
    layer = LAYERS[AMD64]
    blob = gzip.compress(layer, 9, mtime=1)
    async with pull_world(tmp_path) as world:
        info = await write_whole(world.content, NS, "known", blob)
        update = type(info)(info.digest, 0, labels={UNCOMPRESSED: digests.of(layer)})
        await world.content.update(NS, update, [f"labels.{UNCOMPRESSED}"])
        await load(world, docker({AMD64: layer}))
        assert await layers_of(world, NAMES[AMD64]) == [(media.DOCKER_LAYER_GZIP, blob)]


async def test_a_layout_stays_as_it_is_although_compressing_is_asked_for(tmp_path: Path) -> None:
    layer = LAYERS[AMD64]
    config = encoded({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [digests.of(layer)]}})
    manifest = encoded(
        {
            "schemaVersion": 2,
            "mediaType": media.OCI_MANIFEST,
            "config": described(config, media.OCI_CONFIG),
            "layers": [described(layer, media.OCI_LAYER)],
        }
    )
    top = described(manifest, media.OCI_MANIFEST, annotations={"io.containerd.image.name": "h.io/plain:1"})
    async with pull_world(tmp_path) as world:
        archive = layout({"schemaVersion": 2, "manifests": [top]}, [layer, config, manifest])
        assert await load(world, archive, force_compress=True) == ["h.io/plain:1"]
        assert await layers_of(world, "h.io/plain:1") == [(media.OCI_LAYER, layer)]
