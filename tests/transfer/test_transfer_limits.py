"""How much of an image is fetched, and how much of it at a time."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest
from transfer_world import AMD64, ARM64, REFERENCE, layer_of, pull_world

from orlop.core import digest as digests
from orlop.errors import InvalidArgument
from orlop.transfer import pull
from orlop.transfer.fetch import Fetches

pytestmark = pytest.mark.root

LAYERS = [layer_of(str(number), 5000) for number in range(5)]
BLOBS = [digests.of(gzip.compress(layer, mtime=0)) for layer in LAYERS]


async def test_no_more_layers_are_fetched_at_a_time_than_the_daemon_may(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        world.fetches = Fetches(world.content, world.leases, 2)
        world.registry.serve(world.registry.image(LAYERS))
        gates = {blob: asyncio.Event() for blob in BLOBS}
        world.registry.hold |= gates
        pulling = asyncio.create_task(world.pull(unpack=False))
        done: set[str] = set()
        while len(done) < len(BLOBS):
            going = min(2, len(BLOBS) - len(done))
            await world.until(lambda going=going: len(world.registry.fetched & gates.keys() - done) == going)  # type: ignore[misc]
            # Those that wait have been given every chance to begin.
            await asyncio.sleep(0.05)
            under_way = world.registry.fetched & gates.keys() - done
            assert len(under_way) == going
            next_one = min(under_way)
            gates[next_one].set()
            done.add(next_one)
        await pulling


async def test_at_most_as_many_manifests_come_as_are_wanted(tmp_path: Path) -> None:
    async with pull_world(tmp_path) as world:
        one, two = world.registry.image(LAYERS[:1]), world.registry.image(LAYERS[1:2], ARM64)
        world.registry.serve(world.registry.index(one, two))
        await world.pull(platforms=[ARM64, AMD64], manifest_limit=1, unpack=False)
        assert two["digest"] in await world.digests()
        assert one["digest"] not in await world.digests()


async def test_an_index_of_too_many_manifests_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "MAX_DOCUMENTS", 3)
    async with pull_world(tmp_path) as world:
        world.registry.serve(world.registry.index(*(world.registry.image([layer]) for layer in LAYERS[:4])))
        with pytest.raises(InvalidArgument, match=f"{REFERENCE}: more than 3 manifests"):
            await world.pull(unpack=False)
        assert await world.names() == []
