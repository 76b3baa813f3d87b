"""Images made of others: recompressed, for fewer platforms, with other media types."""

from __future__ import annotations

from collections.abc import Sequence

import click

from orlop.cli import output, progress
from orlop.client import Client
from orlop.core import media, platform
from orlop.core.descriptor import Descriptor
from orlop.errors import InvalidArgument
from orlop.images import names
from orlop.images.convert import Conversion
from orlop.layers.compression import Compression

_FORMS = {"gzip": Compression.GZIP, "zstd": Compression.ZSTD, "none": Compression.NONE}


async def convert(
    client: Client,
    *,
    source: str,
    name: str,
    form: str | None,
    oci: bool,
    platforms: Sequence[str],
    everything: bool,
    quiet: bool,
) -> int:
    if platforms and everything:
        raise InvalidArgument.verbatim("--platform and --all-platforms exclude each other")
    image = await client.image(source)
    wanted = [platform.parse(text) for text in platforms] or None
    if wanted is None and not everything and media.is_index(image.target.media_type):
        wanted = [platform.host()]
    conversion = Conversion(_FORMS[form] if form else None, oci, wanted)
    with progress.display(quiet=quiet) as display:

        def tell(layer: Descriptor, done: int) -> None:
            phase = progress.DONE if done == layer.size else "converting"
            display.part(output.short(layer.digest), phase, done, layer.size)

        display.say(f"converting {image.name}")
        made = await client.convert(image, names.normalize(name), conversion, tell)
    click.echo(made.target.digest if quiet else f"{made.name}  {made.target.digest}")
    if not quiet and made.target.digest == image.target.digest:
        click.echo(f"orlop: nothing to convert: {made.name} is what {image.name} is", err=True)
    return 0
