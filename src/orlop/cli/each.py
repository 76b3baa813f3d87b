"""One action for several names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import click

from orlop.errors import OrlopError


async def each(names: Iterable[str], action: Callable[[str], Awaitable[None]]) -> int:
    """Does `action` for every name and goes on where one fails; the status is 1 if any has, and each is told."""
    status = 0
    for name in names:
        try:
            await action(name)
        except OrlopError as error:
            click.echo(f"orlop: {error}", err=True)
            status = 1
        else:
            click.echo(name)
    return status
