"""Images looked at closely: what one is made of, how it was made, and what it shares with others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from orlop.cli import output
from orlop.client import Client
from orlop.core import media, platform, rfc3339
from orlop.core.descriptor import Descriptor
from orlop.core.image import Image
from orlop.errors import NotFound
from orlop.images import survey as surveys
from orlop.images.survey import Edition, Layer, Survey

UNPACKED = "containerd.io/snapshot/orlop.unpacked"
"""The label by which the snapshotter overlayfs tells why a layer is a directory."""

_SETTINGS = (
    ("Entrypoint", "Entrypoint"),
    ("Command", "Cmd"),
    ("Directory", "WorkingDir"),
    ("User", "User"),
    ("Stop signal", "StopSignal"),
    ("Ports", "ExposedPorts"),
    ("Volumes", "Volumes"),
)


async def inspect(client: Client, names: Sequence[str], *, as_json: bool) -> None:
    documents = []
    for number, name in enumerate(names):
        image = await client.image(name)
        survey = await surveys.survey(client.content, client.scope, image.target)
        snapshotter = await client.snapshotter()
        unpacked = await _unpacked(client, survey, snapshotter)
        if as_json:
            documents.append(_document(image, survey, snapshotter, unpacked))
            continue
        if number:
            click.echo()
        _describe(image, survey, snapshotter, unpacked)
    if as_json:
        output.echo_json(documents)


async def _unpacked(client: Client, survey: Survey, snapshotter: str) -> Mapping[str, str]:
    """The chain ids that are snapshots, each with why its layer is a directory although layers are kept, if it is."""
    wanted = sorted({layer.chain_id for edition in survey.editions for layer in edition.layers if layer.chain_id})

    async def reason(chain_id: str) -> str | None:
        try:
            info = await client.snapshots.stat(client.scope, snapshotter, chain_id)
        except NotFound:
            return None
        return info.labels.get(UNPACKED, "")

    found = await asyncio.gather(*map(reason, wanted))
    return {chain_id: why for chain_id, why in zip(wanted, found, strict=True) if why is not None}


def _document(image: Image, survey: Survey, snapshotter: str, unpacked: Mapping[str, str]) -> dict[str, Any]:
    blobs = survey.blobs().values()
    return {
        "name": image.name,
        "target": _descriptor(image.target),
        "labels": dict(image.labels),
        "createdAt": rfc3339.render(image.created_at),
        "updatedAt": rfc3339.render(image.updated_at),
        "size": sum(descriptor.size for descriptor, present in blobs if present),
        "missing": [descriptor.digest for descriptor, present in blobs if not present],
        "indexes": [_descriptor(index) | {"present": present} for index, present in survey.indexes],
        "manifests": [_edition(edition, snapshotter, unpacked) for edition in survey.editions],
    }


def _edition(edition: Edition, snapshotter: str, unpacked: Mapping[str, str]) -> dict[str, Any]:
    document: dict[str, Any] = _descriptor(edition.manifest) | {
        "platform": str(edition.platform) if edition.platform else None,
        "present": edition.is_present,
        "complete": edition.is_complete,
    }
    if edition.config is not None:
        document["config"] = _descriptor(edition.config) | {"present": edition.has_config}
        document["image"] = dict(edition.document) or None
    document["layers"] = [
        _descriptor(layer.descriptor)
        | {
            "present": layer.is_present,
            "diffId": layer.diff_id or None,
            "chainId": layer.chain_id or None,
            "snapshotter": snapshotter if layer.chain_id in unpacked else None,
            "whyDirectory": unpacked.get(layer.chain_id) or None,
        }
        for layer in edition.layers
    ]
    return document


def _descriptor(descriptor: Descriptor) -> dict[str, Any]:
    document: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    return document | ({"annotations": dict(descriptor.annotations)} if descriptor.annotations else {})


def _describe(image: Image, survey: Survey, snapshotter: str, unpacked: Mapping[str, str]) -> None:
    blobs = survey.blobs().values()
    here = sum(descriptor.size for descriptor, present in blobs if present)
    missing = [descriptor for descriptor, present in blobs if not present]
    _line("Name", image.name)
    _line("Target", f"{image.target.digest} ({image.target.media_type})")
    _line("Stored", f"{output.age(image.created_at)} ago")
    _line("Size", f"{output.size(here)} here" + (f", {_count(len(missing), 'blob')} missing" if missing else ""))
    _lines("Labels", (f"{key}={value}" for key, value in sorted(image.labels.items())))
    for edition in survey.editions:
        click.echo()
        _describe_edition(edition, snapshotter, unpacked)


def _describe_edition(edition: Edition, snapshotter: str, unpacked: Mapping[str, str]) -> None:
    kind = "attestation" if edition.is_attestation else str(edition.platform or edition.manifest.media_type)
    if not edition.is_present:
        click.echo(f"{output.plain(kind)}: not here ({edition.manifest.digest})")
        return
    click.echo(f"{output.plain(kind)}:{'' if edition.is_complete else ' incomplete'}")
    _line("  Manifest", edition.manifest.digest)
    if edition.config is not None:
        _line("  Config", edition.config.digest + ("" if edition.has_config else " (missing)"))
    _line("  Made", str(edition.document.get("created") or ""))
    settings = edition.document.get("config")
    for title, key in _SETTINGS:
        _line(f"  {title}", _setting(settings.get(key)) if isinstance(settings, Mapping) else "")
    if isinstance(settings, Mapping):
        _lines("  Environment", settings.get("Env") or ())
        _lines("  Labels", (f"{key}={value}" for key, value in sorted((settings.get("Labels") or {}).items())))
    if edition.layers:
        click.echo()
        rows = [_row(number, layer, snapshotter, unpacked) for number, layer in enumerate(edition.layers, 1)]
        output.table(("  LAYER", "SIZE", "TYPE", "DIGEST", "DIFF ID", "CONTENT", "SNAPSHOT"), rows)
        for number, layer in enumerate(edition.layers, 1):
            if reason := unpacked.get(layer.chain_id):
                click.echo(f"  Layer {number} is a directory: {output.plain(reason)}")


def _row(number: int, layer: Layer, snapshotter: str, unpacked: Mapping[str, str]) -> Sequence[str]:
    return (
        f"  {number}",
        output.size(layer.descriptor.size),
        compression(layer.descriptor.media_type),
        output.short(layer.descriptor.digest),
        output.short(layer.diff_id) or "-",
        "here" if layer.is_present else "missing",
        snapshotter if layer.chain_id in unpacked else "-",
    )


def compression(media_type: str) -> str:
    """What a layer's media type says of it, in a word or two."""
    base = media_type.rpartition("/")[2]
    known = {media.OCI_LAYER: "tar", media.DOCKER_LAYER: "tar", media.DOCKER_LAYER_GZIP: "gzip"}
    if media_type in known:
        return known[media_type]
    return base.partition("+")[2].replace("+", " ") or base


def _setting(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return " ".join(map(str, value))
    if isinstance(value, list):
        import shlex

        return shlex.join(map(str, value))
    return ""


def _line(title: str, text: str) -> None:
    if text:
        click.echo(f"{title + ':':<15} {output.plain(text)}")


def _lines(title: str, texts: Iterable[object]) -> None:
    for text in texts:
        _line(title, str(text))
        title = ""


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


async def history(client: Client, name: str, wanted: str, *, whole: bool, as_json: bool) -> None:
    """How an image was made, last step first."""
    image = await client.image(name)
    survey = await surveys.survey(client.content, client.scope, image.target)
    fitting = platform.parse(wanted) if wanted else platform.host()
    edition = survey.edition(fitting)
    if edition is None:
        has = ", ".join(str(one.platform) for one in survey.editions if one.platform and one.is_present)
        raise NotFound(f'image "{image.name}": no manifest for {fitting} is here{has and f" (has {has})"}')
    steps = list(reversed(edition.history()))
    if as_json:
        output.echo_json(
            [
                {
                    "created": step.created,
                    "createdBy": step.created_by,
                    "author": step.author or None,
                    "comment": step.comment or None,
                    "layer": layer.descriptor.digest if layer else None,
                    "size": layer.descriptor.size if layer else 0,
                }
                for step, layer in steps
            ]
        )
        return
    rows = []
    for step, layer in steps:
        made = " ".join(output.plain(step.created_by).split())
        if not whole and len(made) > 60:
            made = made[:57] + "..."
        size = output.size(layer.descriptor.size) if layer else "-"
        digest = output.short(layer.descriptor.digest) if layer else "-"
        rows.append((step.created or "-", size, digest, made, step.comment))
    output.table(("MADE", "SIZE", "LAYER", "BY", "COMMENT"), rows)
