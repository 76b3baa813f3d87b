"""The commands of `orlop`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from orlop import __version__
from orlop.cli import flags, image_commands
from orlop.cli.target import Target

if TYPE_CHECKING:
    from orlop.client import Client


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


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--rm", "remove", is_flag=True, help="Remove the container when it has ended.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait for it.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@click.option("-e", "--env", multiple=True, help="Set a variable: KEY=VALUE.")
@click.option("-v", "--volume", multiple=True, help="Bind a path of the host: SOURCE:TARGET[:ro,rslave...].")
@click.option("-w", "--workdir", default="", help="The working directory.")
@click.option("-u", "--user", default="", help="The user, by name or number: USER[:GROUP].")
@click.option("-l", "--label", multiple=True, help="Label the container: KEY=VALUE.")
@click.option("-m", "--memory", default="", help="Limit memory: 64m, 1g.")
@click.option("--cpus", type=float, default=0.0, help="Limit processors: 0.5.")
@click.option("--read-only", is_flag=True, help="Make the root file system read-only.")
@flags.isolation
@click.option("--runtime", default="", help="The runtime, by name or path of a shim.")
@click.option(
    "--pull",
    type=click.Choice(["missing", "always", "never"]),
    default="missing",
    show_default=True,
    help="Whether to pull IMAGE first.",
)
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


image_commands.add_to(main)
