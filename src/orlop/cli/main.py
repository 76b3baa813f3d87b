"""The commands of `orlop`."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from orlop import __version__
from orlop.cli import signals
from orlop.errors import OrlopError, Unavailable

if TYPE_CHECKING:
    from orlop.client import Client

# The client, and what a command needs, is imported when it runs: help and mistakes in a command should not wait for it.
Command = Callable[["Client"], Awaitable[int | None]]


@dataclass(frozen=True, slots=True)
class Target:
    """The daemon and namespace that the command line names."""

    address: str
    namespace: str

    def run(self, command: Command) -> None:
        """Runs `command` with a client; ends the program with its status, or with an error that says what to do."""

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
        from orlop.client import connect

        task = asyncio.current_task()
        assert task is not None
        with signals.ending(task, told):
            async with connect(self.address, self.namespace) as client:
                return await command(client)

    def _unreachable(self) -> str:
        """Why the daemon cannot be reached, and what to do; empty if it can."""
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


def fail(message: str) -> None:
    """Ends the program with status 1 and `message`."""
    click.echo(f"orlop: {message}", err=True)
    sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.option("-a", "--address", envvar="ORLOP_ADDRESS", default="", help="The daemon's socket.")
@click.option("-n", "--namespace", envvar="ORLOP_NAMESPACE", default="", help="The namespace to work in.")
@click.version_option(__version__, prog_name="orlop")
@click.pass_context
def main(context: click.Context, address: str, namespace: str) -> None:
    """Runs containers, and looks after their images."""
    context.obj = Target(address, namespace)


@main.command()
@click.pass_obj
def version(target: Target) -> None:
    """Shows the version of this program and of the daemon."""

    async def command(client: Client) -> None:
        answer = await client.version.get()
        click.echo(f"Client: orlop {__version__}\nServer: {answer.version} {answer.revision}".rstrip())

    target.run(command)


@main.command()
@click.pass_obj
def info(target: Target) -> None:
    """Shows what the daemon is made of and what it found on this host."""
    from orlop.cli import inform

    target.run(inform.info)


@main.command("import")
@click.argument("archive", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--no-unpack", is_flag=True, help="Only store the image; unpack it when it is first run.")
@click.option("--name", default="", help="The name of an image that the archive leaves without one.")
@click.option("-q", "--quiet", is_flag=True, help="Print the names alone.")
@click.pass_obj
def import_(target: Target, archive: str, no_unpack: bool, name: str, quiet: bool) -> None:
    """Imports the images of ARCHIVE, an OCI layout or what `docker save` wrote; `-` is standard input."""
    from orlop.cli import image

    target.run(lambda client: image.import_archive(client, archive, name=name, unpack=not no_unpack, quiet=quiet))


@main.command()
@click.option("-q", "--quiet", is_flag=True, help="Print the names alone.")
@click.pass_obj
def images(target: Target, quiet: bool) -> None:
    """Lists images."""
    from orlop.cli import image

    target.run(lambda client: image.show(client, quiet=quiet))


@main.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def rmi(target: Target, names: tuple[str, ...]) -> None:
    """Removes images, and what only they held."""
    from orlop.cli import image

    target.run(lambda client: image.remove(client, names))


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--rm", "remove", is_flag=True, help="Remove the container when it has ended.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait for it.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@click.option("-e", "--env", multiple=True, help="Set a variable: KEY=VALUE.")
@click.option("-v", "--volume", multiple=True, help="Bind a path of the host: SOURCE:TARGET[:ro].")
@click.option("-w", "--workdir", default="", help="The working directory.")
@click.option("-u", "--user", default="", help="The user, by name or number: USER[:GROUP].")
@click.option("-l", "--label", multiple=True, help="Label the container: KEY=VALUE.")
@click.option("-m", "--memory", default="", help="Limit memory: 64m, 1g.")
@click.option("--cpus", type=float, default=0.0, help="Limit processors: 0.5.")
@click.option("--read-only", is_flag=True, help="Make the root file system read-only.")
@click.option("--net-host", is_flag=True, help="Share the host's network.")
@click.option("--runtime", default="", help="The runtime, by name or path of a shim.")
@click.argument("image")
@click.argument("id")
@click.argument("command", nargs=-1)
@click.pass_obj
def run(target: Target, /, **options: Any) -> None:
    """Runs COMMAND in a new container ID made from IMAGE."""
    from orlop.cli import container

    target.run(lambda client: container.run(client, **options))


@main.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that do not run.")
@click.option("-q", "--quiet", is_flag=True, help="Print the ids alone.")
@click.pass_obj
def ps(target: Target, everything: bool, quiet: bool) -> None:
    """Lists containers."""
    from orlop.cli import container

    target.run(lambda client: container.show(client, everything=everything, quiet=quiet))


@main.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@click.option("-e", "--env", multiple=True, help="Set a variable: KEY=VALUE.")
@click.option("-w", "--workdir", default="", help="The working directory.")
@click.argument("id")
@click.argument("command", nargs=-1, required=True)
@click.pass_obj
def exec_(target: Target, /, **options: Any) -> None:
    """Runs COMMAND in the running container ID."""
    from orlop.cli import container

    target.run(lambda client: container.execute(client, **options))


@main.command()
@click.option("-s", "--signal", default="TERM", help="The signal, by name or number.")
@click.argument("ids", nargs=-1, required=True)
@click.pass_obj
def kill(target: Target, signal: str, ids: tuple[str, ...]) -> None:
    """Sends a signal to containers."""
    from orlop.cli import container

    target.run(lambda client: container.kill(client, ids, signal))


@main.command()
@click.option("-f", "--force", is_flag=True, help="Also those that run: they are killed first.")
@click.argument("ids", nargs=-1, required=True)
@click.pass_obj
def rm(target: Target, force: bool, ids: tuple[str, ...]) -> None:
    """Removes containers."""
    from orlop.cli import container

    target.run(lambda client: container.remove(client, ids, force=force))


@main.command()
@click.argument("filters", nargs=-1)
@click.pass_obj
def events(target: Target, filters: tuple[str, ...]) -> None:
    """Shows events as they happen, of all namespaces; FILTERS narrow them: `topic==/tasks/exit`,
    `'topic~=|^/tasks/|'`."""
    from orlop.cli import inform

    target.run(lambda client: inform.events(client, filters))
