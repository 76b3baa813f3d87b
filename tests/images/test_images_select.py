"""Choosing a manifest for a platform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from images_world import NS, World, encoded, pointer, small_image, world

from orlop.core import media
from orlop.core.descriptor import Descriptor
from orlop.core.platform import Platform
from orlop.errors import InvalidArgument, NotFound
from orlop.images import select
from orlop.images.select import manifest_for, rank

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64")


@pytest.mark.parametrize(
    ("wanted", "best_first"),
    [
        (AMD64, ["amd64", "386"]),
        (ARM64, ["arm64", "arm/v8", "arm/v7", "arm/v6", "arm/v5"]),
        (Platform("linux", "arm", "v7"), ["arm/v7", "arm/v6", "arm/v5"]),
        (Platform("linux", "s390x"), ["s390x"]),
    ],
)
def test_platforms_are_ranked_by_how_well_they_fit(wanted: Platform, best_first: list[str]) -> None:
    platforms = [Platform("linux", *text.split("/")) for text in best_first]
    assert [rank(platform, wanted) for platform in platforms] == list(range(len(platforms)))
    assert rank(Platform("linux", "riscv64"), wanted) is None
    assert rank(Platform("windows", wanted.architecture), wanted) is None


def test_one_processor_has_several_names() -> None:
    assert rank(Platform("linux", "arm64", "v8"), ARM64) == rank(Platform("linux", "aarch64"), ARM64) == 0
    assert rank(Platform("linux", "x86_64"), AMD64) == rank(Platform("linux", "amd64", "v1"), AMD64) == 0
    assert rank(Platform("linux", "arm"), Platform("linux", "arm", "v7")) == 0
    assert rank(Platform("linux", "amd64", "v3"), AMD64) is None


def test_a_platform_that_needs_a_feature_does_not_fit() -> None:
    assert rank(Platform("linux", "amd64", os_features=("erofs",)), AMD64) is None


def test_a_build_of_a_system_runs_what_is_for_its_own_version() -> None:
    host = Platform("windows", "amd64", os_version="10.0.17763.1234")
    for version, fits in (("10.0.17763.1", True), ("10.0.17763", True), ("", True), ("10.0.20348.1", False)):
        assert (rank(Platform("windows", "amd64", os_version=version), host) is not None) is fits


async def put_image(w: World, os: str, architecture: str) -> Descriptor:
    manifest, config = small_image((os, architecture))
    await w.put(config, media.OCI_CONFIG)
    return await w.put(manifest, media.OCI_MANIFEST)


async def put_index(w: World, *entries: dict[str, Any]) -> Descriptor:
    return await w.put_json({"schemaVersion": 2, "manifests": list(entries)}, media.OCI_INDEX)


async def test_the_best_manifest_of_an_index_is_chosen_whether_it_names_its_platform_or_not(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        i386, amd64, arm64 = [await put_image(w, "linux", name) for name in ("386", "amd64", "arm64")]
        plain = await put_index(w, *(pointer(one) for one in (i386, amd64, arm64)))
        told = await put_index(
            w,
            *(
                pointer(one, platform={"os": "linux", "architecture": name})
                for one, name in ((i386, "386"), (amd64, "amd64"), (arm64, "arm64"))
            ),
        )
        nested = await put_index(w, pointer(i386), pointer(plain))
        for index in (plain, told, nested, amd64):
            assert (await manifest_for(w.content, NS, index, AMD64))[0].digest == amd64.digest
        assert (await manifest_for(w.content, NS, told, ARM64))[0].digest == arm64.digest


async def test_a_platform_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        here = await put_image(w, "linux", "s390x")
        attestation = pointer(here, platform={"os": "unknown", "architecture": "unknown"})
        windows = pointer(here, platform={"os": "windows", "architecture": "amd64"})
        index = await put_index(w, attestation, windows, pointer(await put_image(w, "linux", "s390x")))
        with pytest.raises(
            NotFound, match=r"no manifest for linux/amd64 \(has windows/amd64, linux/s390x\): not found$"
        ):
            await manifest_for(w.content, NS, index, AMD64)
        with pytest.raises(NotFound, match=r"no manifest for linux/amd64 \(has linux/s390x\)"):
            await manifest_for(w.content, NS, here, AMD64)
        with pytest.raises(NotFound, match=r"no manifest for linux/amd64: not found$"):
            await manifest_for(w.content, NS, await put_index(w), AMD64)


async def test_entries_that_are_absent_or_no_images_are_passed_over(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        good = await put_image(w, "linux", "amd64")
        chart = await w.put_json(
            {
                "schemaVersion": 2,
                "config": pointer(await w.put(b"no JSON", "application/vnd.cncf.helm.config.v1+json")),
                "layers": [],
            },
            media.OCI_MANIFEST,
        )
        absent = Descriptor(media.OCI_MANIFEST, "sha256:" + "0" * 64, 3)
        other = Descriptor("application/vnd.example+json", good.digest, good.size)
        index = await put_index(w, *map(pointer, (absent, other, chart, good)))
        assert (await manifest_for(w.content, NS, index, AMD64))[0].digest == good.digest


async def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with pytest.raises(InvalidArgument, match="neither a manifest nor an index"):
            await manifest_for(w.content, NS, await w.put(b"x", media.OCI_LAYER), AMD64)


async def test_indexes_that_lead_in_a_circle_or_too_deep_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as w:
        index = await put_index(w)
        for _ in range(select.MAX_DEPTH + 1):
            index = await put_index(w, pointer(index))
        with pytest.raises(InvalidArgument, match="nested more than 8 deep"):
            await manifest_for(w.content, NS, index, AMD64)

        # No digest can be its own content's; a store that lies shows what would come of it.
        circle = encoded({"schemaVersion": 2, "manifests": [pointer(Descriptor(media.OCI_INDEX, index.digest, 0))]})

        async def read_circle(*_: object) -> bytes:
            return circle

        monkeypatch.setattr("orlop.images.documents._read", read_circle)
        with pytest.raises(NotFound, match="no manifest for linux/amd64"):
            await manifest_for(w.content, NS, index, AMD64)
