"""Streams of a client end with the lease that they were opened under, also where that merely expires."""

from __future__ import annotations

import asyncio
import os

import pytest
from patience import patient
from real_daemon import Daemon

from orlop.client import connect
from orlop.client.streaming import Streaming
from orlop.core import clock, rfc3339
from orlop.core.scope import Scope

pytestmark = [pytest.mark.root, pytest.mark.ctr]


async def test_a_stream_ends_when_its_lease_has_expired_and_is_collected(daemon: Daemon) -> None:
    async with connect(daemon.address, f"streams{os.getpid()}") as client:
        expire = rfc3339.render(clock.now() + 1_000_000_000)
        lease = await client.leases.create(client.scope, "short", {"containerd.io/gc.expire": expire})
        streams = Streaming(client.channel)
        async with (
            streams.open(client.scope, "free") as free,
            streams.open(Scope(client.scope.namespace, lease.id), "held") as held,
        ):
            ended = asyncio.create_task(held.receive())
            other = asyncio.create_task(free.receive())
            async with asyncio.timeout(patient(60)):
                while not ended.done():
                    made = await client.leases.create(client.scope, "collect")
                    await client.leases.delete(client.scope, made.id, sync=True)
            assert ended.result() is None
            assert not other.done()
            other.cancel()
        assert await client.leases.list(client.scope) == []
