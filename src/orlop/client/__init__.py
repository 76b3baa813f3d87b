"""The Python library: asynchronous and typed, the same whether the daemon is remote or runs in this process.

async with connect("/run/orlop/orlop.sock", namespace="default") as client:
    for image in await client.images.list(client.scope):
        print(image.name)
"""

from __future__ import annotations

from orlop.client.client import Client, connect, embedded

__all__ = ["Client", "connect", "embedded"]
