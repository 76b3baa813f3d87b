"""The commands for images: `orlop image VERB`, and those that are used most without `image` too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from orlop.cli import verify
from orlop.cli.target import Target, alone

if TYPE_CHECKING:
    from collections.abc import Callable

    from orlop.client import Client

Command = TypeVar("Command", bound="Callable[..., Any]")


@click.group("image", no_args_is_help=True)
def image_group() -> None:
    """Looks after images."""


def add_to(main: click.Group) -> None:
    """Adds the group, and the verbs that people type without it."""
    main.add_command(image_group)
    for command, name in (
        (pull, "pull"),
        (push, "push"),
        (import_, "import"),
        (load, "load"),
        (save, "save"),
        (list_, "images"),
        (remove, "rmi"),
        (tag, "tag"),
        (login, "login"),
        (logout, "logout"),
    ):
        main.add_command(command, name)


def registry_access(command: Command) -> Command:
    """The options of commands that reach a registry."""
    for option in (
        click.option("--debug", is_flag=True, help="Show requests to registries and their answers."),
        click.option("--plain-http", is_flag=True, help="http instead of https."),
        click.option("--hosts-dir", default="", metavar="DIR", help="The daemon's directory of HOST/hosts.toml."),
    ):
        command = option(command)
    return command


def platform_choice(command: Command) -> Command:
    """The options of commands that take some of an image's platforms."""
    for option in (
        click.option("--all-platforms", "everything", is_flag=True, help="All platforms."),
        click.option("--platform", "platforms", multiple=True, help="A platform: linux/arm64. May be repeated."),
    ):
        command = option(command)
    return command


@image_group.command()
@platform_choice
@click.option("--no-unpack", is_flag=True, help="Only store the image; unpack it when it is first run.")
@registry_access
@click.option("-q", "--quiet", is_flag=True, help="Print the name alone.")
@click.argument("name", metavar="IMAGE")
@click.pass_obj
def pull(
    target: Target,
    /,
    name: str,
    no_unpack: bool,
    quiet: bool,
    platforms: tuple[str, ...],
    everything: bool,
    **access: Any,
) -> None:
    """Pulls IMAGE from its registry: `busybox`, `ghcr.io/team/app:1`, `host:5000/app@sha256:...`.

    By default for this host's platform. A pull that was interrupted goes on where it stopped.
    """

    async def command(client: Client) -> None:
        from orlop.cli import transfers

        options = transfers.registry_options(**access)
        image = await transfers.pull(
            client,
            name,
            options=options,
            platforms=platforms,
            everything=everything,
            unpack=not no_unpack,
            quiet=quiet,
        )
        click.echo(image.name if quiet else f"{image.name}  {image.target.digest}")

    target.run(command)


@image_group.command()
@platform_choice
@registry_access
@click.option("-q", "--quiet", is_flag=True, help="Print the name alone.")
@click.argument("image")
@click.argument("reference", required=False, default="")
@click.pass_obj
def push(
    target: Target, /, image: str, reference: str, quiet: bool, platforms: Any, everything: bool, **access: Any
) -> None:
    """Pushes IMAGE to the registry that its name says, or as REFERENCE."""

    async def command(client: Client) -> int:
        from orlop.cli import transfers

        options = transfers.registry_options(**access)
        return await transfers.push(
            client, image, reference, options=options, platforms=platforms, everything=everything, quiet=quiet
        )

    target.run(command)


@image_group.command()
@platform_choice
@click.option("-o", "--output", "file", default="", type=click.Path(), help="The file to write; else standard output.")
@click.option("-q", "--quiet", is_flag=True, help="Show nothing on the way.")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.pass_obj
def save(target: Target, /, **options: Any) -> None:
    """Writes images to an archive: an OCI layout that docker reads too. By default for this host's platform."""

    async def command(client: Client) -> int:
        from orlop.cli import transfers

        return await transfers.save(client, **options)

    target.run(command)


@image_group.command()
@click.option(
    "-i", "--input", "archive", default="-", type=click.Path(dir_okay=False, allow_dash=True), help="The file."
)
@click.option("--no-unpack", is_flag=True, help="Only store the image; unpack it when it is first run.")
@click.option("-q", "--quiet", is_flag=True, help="Print the names alone.")
@click.pass_obj
def load(target: Target, archive: str, no_unpack: bool, quiet: bool) -> None:
    """Imports the images of an archive, by default from standard input."""
    from orlop.cli import image

    target.run(lambda client: image.import_archive(client, archive, name="", unpack=not no_unpack, quiet=quiet))


@click.command()
@click.option("-u", "--user", default="", help="The user; else it is asked for.")
@click.option("--password-stdin", "from_stdin", is_flag=True, help="Read the password, or token, from standard input.")
@click.option("--plain-http", is_flag=True, help="http instead of https.")
@click.option("--hosts-dir", default="", metavar="DIR", help="Instead of the daemon's directories of HOST/hosts.toml.")
@click.argument("host", required=False, default="")
@click.pass_obj
def login(target: Target, /, host: str, **options: Any) -> None:
    """Tries a user and password at the registry HOST, by default Docker Hub, and keeps them where docker does.

    That is a credential helper, where docker's configuration names one, else the configuration itself.
    """
    from orlop.cli import login as logins

    alone(lambda: logins.log_in(target, host, **options))


@click.command()
@click.argument("host", required=False, default="")
def logout(host: str) -> None:
    """Forgets the user and password for the registry HOST, by default Docker Hub."""
    from orlop.cli import login as logins

    alone(lambda: logins.log_out(host))


@image_group.command("import")
@click.argument("archive", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--no-unpack", is_flag=True, help="Only store the image; unpack it when it is first run.")
@click.option("--name", default="", help="The name of an image that the archive leaves without one.")
@click.option("-q", "--quiet", is_flag=True, help="Print the names alone.")
@click.pass_obj
def import_(target: Target, archive: str, no_unpack: bool, name: str, quiet: bool) -> None:
    """Imports the images of ARCHIVE, an OCI layout or what `docker save` wrote; `-` is standard input."""
    from orlop.cli import image

    target.run(lambda client: image.import_archive(client, archive, name=name, unpack=not no_unpack, quiet=quiet))


@image_group.command("ls")
@click.argument("names", nargs=-1)
@click.option("-f", "--filter", "filters", multiple=True, help="The daemon's filter language: name~=app, labels.a==b.")
@click.option("--digests", is_flag=True, help="Show digests in full.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print the names alone.")
@click.pass_obj
def list_(target: Target, /, **options: Any) -> None:
    """Lists images; NAMES narrow them: `busybox`, `busybox:1`, `*/team/*`. Of several filters one must fit."""
    from orlop.cli import image

    target.run(lambda client: image.show(client, **options))


@image_group.command("rm")
@click.option("-q", "--quiet", is_flag=True, help="Print the names alone.")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def remove(target: Target, names: tuple[str, ...], quiet: bool) -> None:
    """Removes images, and what only they held. Containers made from them stay as they are."""
    from orlop.cli import image

    target.run(lambda client: image.remove(client, names, quiet=quiet))


@image_group.command()
@click.option("-f", "--force", is_flag=True, help="Also where NAME is another image's now.")
@click.argument("image")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.pass_obj
def tag(target: Target, image: str, names: tuple[str, ...], force: bool) -> None:
    """Gives IMAGE more names."""
    from orlop.cli import image as images

    target.run(lambda client: images.tag(client, image, names, force=force))


@image_group.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON: all there is to know.")
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@click.pass_obj
def inspect(target: Target, names: tuple[str, ...], as_json: bool) -> None:
    """Shows what images are made of, what of it is here, and which layers are unpacked."""
    from orlop.cli import inspection

    target.run(lambda client: inspection.inspect(client, names, as_json=as_json))


@image_group.command()
@click.option("--platform", default="", help="For another platform than this host's: linux/arm64.")
@click.option("--no-trunc", "whole", is_flag=True, help="Show steps in full.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("image")
@click.pass_obj
def history(target: Target, image: str, platform: str, whole: bool, as_json: bool) -> None:
    """Shows how IMAGE was made, last step first."""
    from orlop.cli import inspection

    target.run(lambda client: inspection.history(client, image, platform, whole=whole, as_json=as_json))


@image_group.command()
@click.option("--all-platforms", "everything", is_flag=True, help="Also what is here for other platforms.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def tree(target: Target, everything: bool, as_json: bool) -> None:
    """Shows all images as a tree of layers: what each shares, and what removing it would free."""
    from orlop.cli import layer_tree

    target.run(lambda client: layer_tree.show(client, everything=everything, as_json=as_json))


@image_group.command()
@click.option("--gzip", "form", flag_value="gzip", help="Layers as tar+gzip.")
@click.option("--zstd", "form", flag_value="zstd", help="Layers as tar+zstd, with OCI's media types.")
@click.option("--uncompressed", "form", flag_value="none", help="Layers as plain tar.")
@click.option("--oci", is_flag=True, help="OCI's media types for Docker's.")
@click.option("--platform", "platforms", multiple=True, help="Keep this platform: linux/arm64. May be repeated.")
@click.option("--all-platforms", "everything", is_flag=True, help="Keep all platforms; all must be here.")
@click.option("-q", "--quiet", is_flag=True, help="Print the digest alone.")
@click.argument("source")
@click.argument("name")
@click.pass_obj
def convert(target: Target, /, **options: Any) -> None:
    """Makes the image NAME of SOURCE, with its layers compressed otherwise or for fewer platforms.

    Without --platform or --all-platforms an index keeps this host's platform.
    """
    from orlop.cli import conversion

    target.run(lambda client: conversion.convert(client, **options))


verify.add_to(image_group)
