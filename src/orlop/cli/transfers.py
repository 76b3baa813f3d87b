"""Images to and from registries and archives, by the daemon's Transfer service."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import click

from orlop.cli import output, progress
from orlop.cli.progress import DONE, SHARED, Display
from orlop.client import Client
from orlop.core import media, platform
from orlop.core.image import Image
from orlop.core.platform import Platform
from orlop.core.registry import RegistryOptions
from orlop.core.transfer import ExportEnd, ImageReference, Progress, RegistryEnd, StoreEnd, UnpackRequest
from orlop.errors import InvalidArgument, OrlopError, Unavailable
from orlop.images import names
from orlop.images import survey as surveys
from orlop.registry import docker_config
from orlop.registry.docker_config import DockerConfig


def registry_options(*, hosts_dir: str = "", plain_http: bool = False, debug: bool = False) -> RegistryOptions:
    """How registries are reached: credentials are those that docker's client and `orlop login` keep for this user."""
    return RegistryOptions(
        host_dir=os.path.abspath(hosts_dir) if hosts_dir else "",
        default_scheme="http" if plain_http else "",
        credentials=DockerConfig(docker_config.default_path(os.environ)),
        log=_log if debug else None,
    )


def _log(line: str) -> None:
    click.echo(output.plain(line), err=True)


async def pull(
    client: Client,
    name: str,
    *,
    options: RegistryOptions,
    platforms: Sequence[str] = (),
    everything: bool = False,
    unpack: bool = True,
    quiet: bool = False,
) -> Image:
    """Pulls an image, and shows how it comes. What has arrived when it is interrupted is there for the next time."""
    if platforms and everything:
        raise InvalidArgument.verbatim("--platform and --all-platforms exclude each other")
    full = names.normalize(name)
    wanted = [] if everything else [platform.parse(text) for text in platforms] or [platform.host()]
    with _interruptible(full, "pull") as moved, progress.display(quiet=quiet) as display:
        async with client.lease() as scope:
            unpacks = [UnpackRequest(one, await client.snapshotter()) for one in _unpacked(wanted)] if unpack else []
            end = StoreEnd(full, platforms=wanted, unpacks=unpacks)
            # Of several platforms not all are unpacked, and nobody tells which layers are of which.
            told = _Told(display, "pulling", full, moved, unpacks=0 < len(unpacks) == len(wanted))
            await client.transfer.pull(scope, RegistryEnd(full, options), end, told)
            image = await client.images.get(scope, full)
    if platforms or (unpack and not told.extracted):
        await _tell(client, image, wanted, unpack=unpack)
    return image


async def _tell(client: Client, image: Image, wanted: Sequence[Platform], *, unpack: bool) -> None:
    """Tells where what came is not what was asked for: an image that is no index comes for the platform it is for."""
    survey = await surveys.survey(client.content, client.scope, image.target)
    has = ", ".join(str(edition.platform) for edition in survey.editions if edition.platform and edition.is_present)
    for one in wanted:
        if has and survey.edition(one) is None:
            click.echo(f"orlop: {image.name}: not for {one}, only for {has}", err=True)
    edition = survey.edition(platform.host())
    if unpack and edition is not None and edition.layers:
        try:
            await client.snapshots.stat(client.scope, await client.snapshotter(), edition.layers[-1].chain_id)
        except OrlopError:
            click.echo(f"orlop: {image.name}: stored, not unpacked: the daemon has no snapshotter for it", err=True)


def _unpacked(wanted: Sequence[Platform]) -> list[Platform]:
    """Of the platforms that are pulled, those that this host runs."""
    host = platform.host()
    return [one for one in wanted or [host] if one.os == host.os]


async def push(
    client: Client,
    name: str,
    reference: str,
    *,
    options: RegistryOptions,
    platforms: Sequence[str],
    everything: bool,
    quiet: bool,
) -> int:
    """Pushes an image; of an index whose content is not all here, what this host runs, unless told otherwise."""
    if platforms and everything:
        raise InvalidArgument.verbatim("--platform and --all-platforms exclude each other")
    image = await client.image(name)
    full = names.normalize(reference) if reference else image.name
    wanted = [platform.parse(text) for text in platforms]
    if not wanted and not everything and media.is_index(image.target.media_type):
        survey = await surveys.survey(client.content, client.scope, image.target)
        if not all(edition.is_complete for edition in survey.editions):
            wanted = [platform.host()]
            click.echo(f"orlop: {image.name}: not all platforms are here; pushing {wanted[0]}", err=True)
    with _interruptible(full, "push") as moved, progress.display(quiet=quiet) as display:
        told = _Told(display, "pushing", full, moved, unpacks=False)
        source = StoreEnd(image.name, platforms=wanted)
        async with client.lease() as scope:
            await client.transfer.push(scope, source, RegistryEnd(full, options), told)
    click.echo(full if quiet else f"{full}  {told.root or image.target.digest}")
    return 0


@dataclass(slots=True)
class _Moved:
    """Whether anything of an image has gone from one end to the other."""

    anything: bool = False


@contextmanager
def _interruptible(name: str, verb: str) -> Iterator[_Moved]:
    """Tells what an interrupt, or a registry that went away, leaves."""
    kept = "What has arrived is kept" if verb == "pull" else "What the registry has taken it keeps"
    hint = f"{kept}: 'orlop {verb} {names.familiar(name)}' goes on from there."
    moved = _Moved()
    try:
        yield moved
    except asyncio.CancelledError:
        click.echo(f"orlop: interrupted. {hint}" if moved.anything else "orlop: interrupted.", err=True)
        raise
    except Unavailable as error:
        if not moved.anything:
            raise
        raise type(error).verbatim(f"{error}\n{hint}") from None


class _Told:
    """What the daemon tells of a transfer, as a display shows it: layers only, and the whole."""

    def __init__(self, display: Display, verb: str, name: str, moved: _Moved, *, unpacks: bool) -> None:
        self._display = display
        self._moved = moved
        self._unpacks = unpacks
        self.extracted = False
        self.root = ""
        """The digest of what has a name now; of an index a single manifest may have gone."""
        display.say(f"{verb} {name}")

    def __call__(self, told: Progress) -> None:
        layer = told.descriptor
        self._moved.anything |= told.progress > 0
        if layer is not None and told.event.startswith("Completed push"):
            self.root = layer.digest
        if layer is None or not media.is_layer(layer.media_type):
            return
        self.extracted |= told.event == "extracted"
        phase = {
            "complete": "extracting" if self._unpacks else DONE,
            "already exists": SHARED,
            "extracted": DONE,
        }.get(told.event, told.event)
        done = told.progress if phase in ("downloading", "uploading") else 0
        self._display.part(output.short(layer.digest), phase, done, layer.size)


async def save(
    client: Client, images: Sequence[str], *, file: str, platforms: Sequence[str], everything: bool, quiet: bool
) -> int:
    """Writes images to an archive that `orlop load`, docker and containerd read."""
    if not file and output.is_terminal():
        raise InvalidArgument.verbatim("an archive is not for a terminal: name a file with -o, or redirect the output")
    if platforms and everything:
        raise InvalidArgument.verbatim("--platform and --all-platforms exclude each other")
    first, *more = [(await client.image(name)).name for name in images]
    source = StoreEnd(first, extra_references=[ImageReference(name) for name in more])
    wanted = [platform.parse(text) for text in platforms]
    with _written(file) as out, progress.display(quiet=quiet) as display:
        sink = _FileSink(out, lambda size: display.part(file or "archive", "writing", size, 0))
        display.say(f"saving {', '.join([first, *more])}")
        async with client.lease() as scope:
            end = ExportEnd(sink, platforms=wanted, all_platforms=everything)
            await client.transfer.export_archive(scope, source, end)
    return 0


@contextmanager
def _written(path: str) -> Iterator[BinaryIO]:
    """The file at `path`, there whole or not at all; without a path, standard output."""
    if not path or path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as out:  # a device or a FIFO
            yield out
        return
    temporary = f"{path}.{os.getpid()}.part"
    try:
        with open(temporary, "xb") as out:
            yield out
        os.rename(temporary, path)
    except OSError as error:
        raise InvalidArgument.verbatim(f"cannot write {path}: {error.strerror}") from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


class _FileSink:
    def __init__(self, out: BinaryIO, progress: Callable[[int], None]) -> None:
        self._out, self._progress = out, progress
        self._size = 0

    async def write(self, data: bytes) -> None:
        await asyncio.to_thread(self._out.write, data)
        self._size += len(data)
        self._progress(self._size)

    async def finish(self) -> None:
        await asyncio.to_thread(self._out.flush)
