"""Images checked and mended: `orlop image verify` and `orlop image repair`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orlop.cli.target import Target

if TYPE_CHECKING:
    from orlop.client import Client


def add_to(group: click.Group) -> None:
    group.add_command(verify)
    group.add_command(repair)


@click.command("verify")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def verify(target: Target, names: tuple[str, ...]) -> None:
    """Reads all that images are made of, and names what is not as it was. Ends with 1 if something is not."""
    target.run(lambda client: _verify(client, names))


@click.command("repair")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def repair(target: Target, names: tuple[str, ...]) -> None:
    """Verifies images, and fetches what is damaged again, and only that, from the registries they are named by."""
    target.run(lambda client: _repair(client, names))


async def _verify(client: Client, names: tuple[str, ...]) -> int:
    results = [await _one(client, name) for name in names]
    return 0 if all(results) else 1


async def _one(client: Client, name: str) -> bool:
    from orlop.client import integrity

    condition = await integrity.verify(client, await client.image(name))
    for finding in condition.problems:
        click.echo(f"{name}: {finding.kind} {finding.digest}: {finding.problem}")
    if not condition.problems:
        click.echo(f"{name}: whole ({condition.whole} blobs and layers)")
    return not condition.problems


async def _repair(client: Client, names: tuple[str, ...]) -> int:
    from orlop.client import integrity

    whole = True
    for name in names:
        image = await client.image(name)
        # A document that is damaged hides what it names: what comes to light then is mended in the next round.
        for _ in range(4):
            condition = await integrity.verify(client, image)
            if not condition.problems:
                break
            for finding in condition.problems:
                click.echo(f"{name}: repairing {finding.kind} {finding.digest}: {finding.problem}")
            await integrity.repair(client, image, condition)
        whole = await _one(client, name) and whole
    return 0 if whole else 1
