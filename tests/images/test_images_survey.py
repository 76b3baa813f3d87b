"""What is here of an image, and what images share."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import images_world as world
import pytest
from images_world import ARCHITECTURE, NS

from orlop.core import media
from orlop.core import platform as platforms
from orlop.core.descriptor import Descriptor
from orlop.errors import InvalidArgument
from orlop.images import sharing
from orlop.images.survey import Survey, survey

BASE, UPPER, OTHER = (gzip.compress(bytes([number]) * 2000, mtime=0) for number in (1, 2, 3))


async def image(here: world.World, *layers: bytes, absent: tuple[bytes, ...] = (), **more: Any) -> Descriptor:
    manifest, config, *rest = world.small_image(layers=layers, **more)
    for blob in (config, *rest):
        if blob not in absent:
            await here.put(blob, "")
    return await here.put(manifest, media.OCI_MANIFEST)


async def surveyed(here: world.World, target: Descriptor) -> Survey:
    return await survey(here.content, NS, target)


async def test_an_image_that_is_all_here_is_complete(tmp_path: Path) -> None:
    async with world.world(tmp_path) as here:
        target = await image(here, BASE, UPPER)
        (edition,) = (await surveyed(here, target)).editions
        assert edition.is_complete
        assert str(edition.platform) == f"linux/{ARCHITECTURE}"
        assert [layer.is_present for layer in edition.layers] == [True, True]
        assert edition.layers[0].chain_id == edition.layers[0].diff_id != edition.layers[1].diff_id
        assert edition.document["os"] == "linux"


async def test_what_is_not_here_is_told_layer_by_layer(tmp_path: Path) -> None:
    async with world.world(tmp_path) as here:
        partial = await image(here, BASE, UPPER, absent=(UPPER,))
        (edition,) = (await surveyed(here, partial)).editions
        assert not edition.is_complete
        assert [layer.is_present for layer in edition.layers] == [True, False]
        gone = Descriptor(media.OCI_MANIFEST, "sha256:" + "0" * 64, 5)
        index = await here.put_json(
            {
                "schemaVersion": 2,
                "manifests": [
                    world.pointer(partial, platform={"os": "linux", "architecture": ARCHITECTURE}),
                    world.pointer(gone, platform={"os": "linux", "architecture": "s390x"}),
                ],
            },
            media.OCI_INDEX,
        )
        found = await surveyed(here, index)
        assert found.indexes == [(index, True)]
        assert [(str(one.platform), one.is_present) for one in found.editions] == [
            (f"linux/{ARCHITECTURE}", True),
            ("linux/s390x", False),
        ]
        assert {digest for digest, (_, present) in found.blobs().items() if not present} == {
            gone.digest,
            edition.layers[1].descriptor.digest,
        }
        chosen = found.edition(platforms.host())
        assert chosen is not None
        assert chosen.manifest.digest == partial.digest
        assert found.edition(platforms.parse("linux/s390x")) is None


async def test_an_index_that_is_not_here_has_no_editions(tmp_path: Path) -> None:
    async with world.world(tmp_path) as here:
        gone = Descriptor(media.OCI_INDEX, "sha256:" + "0" * 64, 5)
        found = await surveyed(here, gone)
        assert (found.indexes, found.editions) == ([(gone, False)], [])


async def test_indexes_are_followed_only_so_deep(tmp_path: Path) -> None:
    async with world.world(tmp_path) as here:
        target = await image(here, BASE)
        for _ in range(12):
            target = await here.put_json({"schemaVersion": 2, "manifests": [world.pointer(target)]}, media.OCI_INDEX)
        with pytest.raises(InvalidArgument, match="nested more than"):
            await surveyed(here, target)


async def test_steps_are_told_with_the_layers_they_made(tmp_path: Path) -> None:
    async with world.world(tmp_path) as here:
        manifest, config, *layers = world.small_image(layers=[BASE, UPPER])
        steps = [{"created_by": "a"}, {"created_by": "b", "empty_layer": True}, {"created_by": "c"}, {"comment": "d"}]
        longer = config[:-1] + b', "history": ' + world.encoded(steps) + b"}"
        for blob in (longer, *layers):
            await here.put(blob, "")
        document = manifest.replace(
            world.encoded(world.described(config, media.OCI_CONFIG)),
            world.encoded(world.described(longer, media.OCI_CONFIG)),
        )
        (edition,) = (await surveyed(here, await here.put(document, media.OCI_MANIFEST))).editions
        first, second = edition.layers
        assert [layer for _, layer in edition.history()] == [first, None, second, None]
        assert [step.created_by or step.comment for step, _ in edition.history()] == ["a", "b", "c", "d"]


async def test_shared_bytes_are_those_of_more_than_one_image(tmp_path: Path) -> None:
    async with world.world(tmp_path) as here:
        base, app = await image(here, BASE), await image(here, BASE, UPPER)
        surveys = {
            "base": await surveyed(here, base),
            "app": await surveyed(here, app),
            "also-app": await surveyed(here, app),
            "other": await surveyed(here, await image(here, OTHER)),
        }
        shares = sharing.shares(surveys)
        assert shares["base"].shared == len(BASE)
        assert shares["app"].alone == shares["also-app"].alone == 0
        assert shares["other"].shared == 0
        del surveys["also-app"]
        assert sharing.shares(surveys)["app"].shared == len(BASE)
        roots, bare = sharing.forest(surveys, platforms.host())
        assert bare == []
        tree = [(node.images, node.users, [upper.images for upper in node.upper.values()]) for node in roots.values()]
        assert tree == [(["base"], 2, [["app"]]), (["other"], 1, [])]


async def test_snapshots_go_with_the_last_image_unless_something_stands_on_them(tmp_path: Path) -> None:
    async with world.world(tmp_path) as here:
        surveys = {
            "base": await surveyed(here, await image(here, BASE)),
            "app": await surveyed(here, await image(here, BASE, UPPER)),
            "other": await surveyed(here, await image(here, OTHER)),
        }
        lower, upper = (layer.chain_id for layer in surveys["app"].editions[0].layers)
        other = surveys["other"].editions[0].layers[0].chain_id
        parents = {lower: "", upper: lower, other: ""}
        freed = sharing.freed_snapshots(surveys, parents)
        assert freed == {"base": [], "app": [upper], "other": [other]}
        del surveys["base"]
        assert sharing.freed_snapshots(surveys, parents)["app"] == sorted([lower, upper])
        container = {"container": "between", "between": lower}
        assert sharing.freed_snapshots(surveys, parents | container)["app"] == [upper]
