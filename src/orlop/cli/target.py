"""The daemon that a command line names, and how a command ends."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from orlop.errors import OrlopError, Unavailable

if TYPE_CHECKING:
    from orlop.client import Client

# The client, and what a command needs, is imported when it runs: help and mistakes in a command should not wait for
# it. So is asyncio, which takes as long to import as all that help needs.
Command = Callable[["Client"], Awaitable[int | None]]


@dataclass(frozen=True, slots=True)
class Target:
    """The daemon and namespace that the command line names."""

    address: str
    namespace: str

    def run(self, command: Command) -> None:
        """Runs `command` with a client; ends the program with its status, or with an error that says what to do."""
        import asyncio
        import signal

        told: list[int] = []
        try:
            status = asyncio.run(self._main(command, told))
        except Unavailable as error:
            fail(self._unreachable() or str(error))
        except OrlopError as error:
            fail(str(error))
        except BrokenPipeError:
            sys.stdout = None  # nobody reads it: nothing is left to be flushed
            sys.exit(128 + signal.SIGPIPE)
        except asyncio.CancelledError:
            sys.exit(128 + told[0] if told else 1)
        sys.exit(status or 0)

    async def _main(self, command: Command, told: list[int]) -> int | None:
        import asyncio

        from orlop.cli import signals
        from orlop.client import connect

        task = asyncio.current_task()
        assert task is not None
        with signals.ending(task, told):
            async with connect(self.address, self.namespace) as client:
                return await command(client)

    def _unreachable(self) -> str:
        """Why the daemon cannot be reached, and what to do; empty if it can."""
        import socket

        from orlop.client.client import DEFAULT_ADDRESS

        address = (self.address or DEFAULT_ADDRESS).removeprefix("unix://")
        with socket.socket(socket.AF_UNIX) as peer:
            try:
                peer.connect(address)
            except OSError as error:
                reason = error.strerror or str(error)
                hint = "Is the daemon running? Start it with 'orlopd', or name its socket with --address."
                if isinstance(error, PermissionError):
                    hint = "The daemon's socket is for its owner and group: use sudo, or have its gid configured."
                return f"cannot reach the daemon at {address}: {reason.lower()}\n{hint}"
        return ""


def alone(work: Callable[[], Awaitable[int | None]]) -> None:
    """Runs what needs no daemon; ends the program as `Target.run` does."""
    import asyncio
    import signal

    async def main() -> int | None:
        return await work()

    try:
        status = asyncio.run(main())
    except OrlopError as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    sys.exit(status or 0)


def fail(message: str) -> None:
    """Ends the program with status 1 and `message`."""
    click.echo(f"orlop: {message}", err=True)
    sys.exit(1)
