"""All images as a tree of their layers, with what each shares and what would be freed if it went."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import click

from orlop.cli import output
from orlop.client import Client
from orlop.core import platform
from orlop.errors import NotFound, OrlopError
from orlop.images import sharing
from orlop.images.sharing import Node, Share
from orlop.images.survey import Survey, survey


async def show(client: Client, *, everything: bool, as_json: bool) -> int:
    """The tree of the images' editions for this host, or of all of them; the status is 1 where one cannot be read."""
    surveys, status = await _surveys(client)
    shares = sharing.shares(surveys)
    unpacked = await _freed(client, surveys)
    roots, bare = sharing.forest(surveys, None if everything else platform.host())
    if as_json:
        images = [
            {
                "name": name,
                "size": share.total,
                "shared": share.shared,
                "frees": share.alone,
                "unpacked": unpacked[name],
            }
            for name, share in shares.items()
        ]
        output.echo_json({"images": images, "layers": [_document(node) for node in _all(roots)]})
        return status
    for line in _lines(roots, shares, unpacked):
        click.echo(line)
    for name in bare:
        click.echo(f"{output.plain(name)}  {_words(shares[name], unpacked[name])}  no layers here")
    return status


async def _surveys(client: Client) -> tuple[dict[str, Survey], int]:
    inventory = frozenset(info.digest for info in await client.content.list(client.scope))
    surveys, status = {}, 0
    for image in await client.images.list(client.scope):
        try:
            surveys[image.name] = await survey(client.content, client.scope, image.target, inventory)
        except OrlopError as error:
            click.echo(f"orlop: image {output.plain(image.name)!r}: {output.plain(str(error))}", err=True)
            status = 1
    return surveys, status


async def _freed(client: Client, surveys: Mapping[str, Survey]) -> dict[str, int]:
    """The bytes of snapshots that would go with each image."""
    snapshotter = await client.snapshotter()
    try:
        snapshots = await client.snapshots.list(client.scope, snapshotter)
    except OrlopError:
        return dict.fromkeys(surveys, 0)  # a snapshotter that is not there has none
    freed = sharing.freed_snapshots(surveys, {info.name: info.parent for info in snapshots})

    async def size(key: str) -> int:
        try:
            return (await client.snapshots.usage(client.scope, snapshotter, key)).size
        except NotFound:
            return 0  # it went meanwhile

    return {name: sum(await asyncio.gather(*map(size, keys))) for name, keys in freed.items()}


def _all(roots: dict[str, Node]) -> Iterator[Node]:
    """Every layer before those upon it."""
    left = list(reversed(roots.values()))
    while left:
        node = left.pop()
        yield node
        left.extend(reversed(node.upper.values()))


def _document(node: Node) -> dict[str, Any]:
    return {
        "digest": node.layer.descriptor.digest,
        "diffId": node.layer.diff_id,
        "chainId": node.layer.chain_id,
        "parent": node.parent or None,
        "size": node.layer.descriptor.size,
        "present": node.layer.is_present,
        "images": node.images,
    }


def _lines(roots: dict[str, Node], shares: Mapping[str, Share], unpacked: Mapping[str, int]) -> Iterator[str]:
    """The tree. Layers of which each stands on the one before alone stand below one another; only forks indent."""
    left: list[tuple[Node | str, str, str]] = [(node, "", "") for node in reversed(roots.values())]
    while left:
        item, first, rest = left.pop()
        if isinstance(item, str):
            name = item if item in shares else item.rpartition(" (")[0]
            yield f"{first}{output.plain(item)}  {_words(shares[name], unpacked[name])}"
            continue
        yield f"{first}{_layer(item)}"
        above: list[Node | str] = [*item.images, *item.upper.values()]
        if len(above) == 1 and isinstance(above[0], Node):
            left.append((above[0], rest, rest))
            continue
        for last, one in enumerate(reversed(above)):
            branch, bar = ("├─ ", "│  ") if last else ("└─ ", "   ")
            left.append((one, rest + branch, rest + bar))


def _layer(node: Node) -> str:
    shared = f"  in {node.users} images" if node.users > 1 else ""
    missing = "" if node.layer.is_present else "  missing"
    return f"{output.short(node.layer.descriptor.digest)}  {output.size(node.layer.descriptor.size)}{shared}{missing}"


def _words(share: Share, unpacked: int) -> str:
    frees = f"frees {output.size(share.alone)}"
    if unpacked:
        frees += f" and {output.size(unpacked)} unpacked"
    return f"{output.size(share.total)}, shares {output.size(share.shared)}, {frees}"
