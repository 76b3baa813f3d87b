"""Conversion: what becomes of layers and documents, and what stays as it is."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import images_world as world
import pytest
import zstandard
from images_world import ARCHITECTURE, NS

from orlop.core import digest as digests
from orlop.core import media
from orlop.core import platform as platforms
from orlop.core.content import read_whole
from orlop.core.descriptor import Descriptor
from orlop.core.labels import UNCOMPRESSED
from orlop.errors import FailedPrecondition, NotFound
from orlop.images import children, convert
from orlop.images.convert import ATTESTED, Conversion
from orlop.images.survey import ATTESTATION
from orlop.layers.compression import Compression

TARS = [bytes([number]) * 300_000 for number in (1, 2)]
LAYERS = [gzip.compress(tar, mtime=0) for tar in TARS]


async def image(here: world.World, layers: list[bytes] = LAYERS, **more: Any) -> Descriptor:
    manifest, *blobs = world.small_image(layers=layers, **more)
    for blob in blobs:
        await here.put(blob, "")
    target = await here.put(manifest, media.OCI_MANIFEST)
    await children.label(here.content, NS, target)
    return target


async def read(here: world.World, target: Descriptor | str) -> Any:
    digest = target if isinstance(target, str) else target.digest
    return json.loads(await read_whole(here.content, NS, digest, 1 << 20))


async def converted(here: world.World, target: Descriptor, *arguments: Any, **options: Any) -> Descriptor:
    return await convert.convert(here.content, NS, target, Conversion(*arguments, **options))


def unpacked(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


async def test_gzip_becomes_zstd_with_the_same_archives(tmp_path: Path) -> None:
    async with world.world(tmp_path) as here:
        target = await image(here)
        done: dict[str, int] = {}
        made = await convert.convert(
            here.content,
            NS,
            target,
            Conversion(Compression.ZSTD),
            lambda layer, size: done.update({layer.digest: size}),
        )
        document, before = await read(here, made), await read(here, target)
        assert document["config"] == before["config"]
        assert done == {digests.of(layer): len(layer) for layer in LAYERS}
        for layer, tar in zip(document["layers"], TARS, strict=True):
            data = await read_whole(here.content, NS, layer["digest"], 1 << 20)
            assert (layer["mediaType"], layer["size"]) == (media.OCI_LAYER_ZSTD, len(data))
            assert unpacked(data) == tar
            assert await here.labels(layer["digest"]) == {UNCOMPRESSED: digests.of(tar)}
        assert (await here.labels(made.digest))[f"{children.PREFIX}l.1"] == document["layers"][1]["digest"]
        assert await converted(here, target, Compression.ZSTD) == made
        assert await converted(here, made, Compression.ZSTD) == made
        assert await here.content.statuses(NS) == []


async def test_there_and_back_is_the_same_image(tmp_path: Path) -> None:
    async with world.world(tmp_path) as here:
        target = await image(here)
        plain = await converted(here, target, Compression.NONE)
        assert [layer["digest"] for layer in (await read(here, plain))["layers"]] == list(map(digests.of, TARS))
        packed = await converted(here, plain, Compression.GZIP)
        assert await converted(here, await converted(here, packed, Compression.ZSTD), Compression.GZIP) == packed
        again = await converted(here, packed, Compression.NONE)
        assert again == plain


async def test_docker_types_become_ocis_and_other_keys_stay(tmp_path: Path) -> None:
    async with world.world(tmp_path) as here:
        manifest, config, *layers = world.small_image(layers=LAYERS)
        for blob in (config, *layers):
            await here.put(blob, "")
        docker = json.loads(manifest) | {"mediaType": media.DOCKER_MANIFEST, "x-kept": {"a": [1]}}
        docker["config"]["mediaType"] = media.DOCKER_CONFIG
        for layer in docker["layers"]:
            layer["mediaType"] = media.DOCKER_LAYER_GZIP
        foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        docker["layers"][1] |= {"mediaType": foreign, "urls": ["http://x/"]}
        target = await here.put_json(docker, media.DOCKER_MANIFEST)
        made = await converted(here, target, oci=True)
        document = await read(here, made)
        assert made.media_type == document["mediaType"] == media.OCI_MANIFEST
        assert document["config"]["mediaType"] == media.OCI_CONFIG
        assert [layer["mediaType"] for layer in document["layers"]] == [
            media.OCI_LAYER_GZIP,
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        ]
        assert document["x-kept"] == {"a": [1]}
        plain = await read(here, await converted(here, target, Compression.NONE))
        assert [layer["mediaType"] for layer in plain["layers"]] == [media.DOCKER_LAYER, foreign]
        assert plain["layers"][1] == docker["layers"][1]
        zstd = await read(here, await converted(here, target, Compression.ZSTD))
        assert zstd["layers"][0]["mediaType"] == media.OCI_LAYER_ZSTD


async def test_an_index_keeps_the_platforms_that_are_wanted(tmp_path: Path) -> None:
    async with world.world(tmp_path) as here:
        own, other = await image(here), await image(here, LAYERS[:1], platform=("linux", "s390x"))
        gone = Descriptor(media.OCI_MANIFEST, "sha256:" + "0" * 64, 5)
        about = {ATTESTATION: "attestation-manifest"}
        entries = [
            world.pointer(own, platform={"os": "linux", "architecture": ARCHITECTURE}),
            world.pointer(other, platform={"os": "linux", "architecture": "s390x"}),
            world.pointer(gone, platform={"os": "windows", "architecture": "amd64"}),
            world.pointer(gone, annotations=about | {ATTESTED: own.digest}) | {"digest": "sha256:" + "1" * 64},
            world.pointer(gone, annotations=about | {ATTESTED: other.digest}) | {"digest": "sha256:" + "2" * 64},
        ]
        index = await here.put_json({"schemaVersion": 2, "manifests": entries}, media.OCI_INDEX)
        host = platforms.host()
        assert (await read(here, await converted(here, index, platforms=[host])))["manifests"] == [
            entries[0],
            entries[3],
        ]
        made = await read(here, await converted(here, index, Compression.NONE, platforms=[host]))
        assert [entry["platform"]["architecture"] for entry in made["manifests"]] == [ARCHITECTURE]
        assert made["manifests"][0]["digest"] != own.digest
        both = await read(here, await converted(here, index, platforms=[host, platforms.parse("s390x")]))
        assert both["manifests"] == [entries[0], entries[1], entries[3], entries[4]]
        with pytest.raises(NotFound, match=r"no manifest for linux/riscv64 \(has linux/.*, windows/amd64\)"):
            await converted(here, index, platforms=[platforms.parse("riscv64")])
        with pytest.raises(NotFound, match=gone.digest):
            await converted(here, index)


async def test_a_layer_that_is_not_what_the_config_says_is_no_image(tmp_path: Path) -> None:
    async with world.world(tmp_path) as here:
        manifest, config, *_ = world.small_image(layers=LAYERS[:1])
        false = config.replace(digests.of(TARS[0]).encode(), digests.of(TARS[1]).encode())
        await here.put(false, "")
        await here.put(LAYERS[0], "")
        named = world.encoded(world.described(false, media.OCI_CONFIG))
        target = await here.put(
            manifest.replace(world.encoded(world.described(config, media.OCI_CONFIG)), named), media.OCI_MANIFEST
        )
        with pytest.raises(FailedPrecondition, match=f"its archive is {digests.of(TARS[0])}, the image config says"):
            await converted(here, target, Compression.ZSTD)
        assert await here.content.statuses(NS) == []


async def test_indexes_that_name_one_another_many_times_are_read_once(tmp_path: Path) -> None:
    async with world.world(tmp_path) as here:
        target = await image(here)
        for _ in range(7):
            entries = [world.pointer(target)] * 50
            target = await here.put_json({"schemaVersion": 2, "manifests": entries}, media.OCI_INDEX)
        made = await converted(here, target, Compression.ZSTD)
        assert len((await read(here, made))["manifests"]) == 50
