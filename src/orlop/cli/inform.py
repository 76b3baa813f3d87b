"""What the daemon is, and what happens in it."""

from __future__ import annotations

from collections.abc import Sequence

import click
from google.protobuf import json_format, symbol_database
from google.protobuf.message import DecodeError

import orlop.api.events.container_pb2
import orlop.api.events.content_pb2
import orlop.api.events.image_pb2
import orlop.api.events.namespace_pb2
import orlop.api.events.sandbox_pb2
import orlop.api.events.snapshot_pb2
import orlop.api.events.task_pb2  # noqa: F401 (their types are looked up by name)
from orlop.cli import output
from orlop.client import Client
from orlop.core import rfc3339
from orlop.core.typed import Typed


async def info(client: Client) -> None:
    server = await client.introspection.server()
    version = await client.version.get()
    click.echo(f"Version: {version.version} {version.revision}".rstrip())
    click.echo(f"Id:      {server.uuid}\nProcess: {server.pid}")
    for deprecation in server.deprecations:
        click.echo(f"Warning: {deprecation.message}")  # type: ignore[attr-defined] # the stub means the builtin
    rows = []
    for plugin in await client.introspection.plugins():
        state = "ok"
        if plugin.HasField("init_err"):
            state = "skip" if "skip plugin" in plugin.init_err.message else "error"
        detail = plugin.init_err.message or " ".join(f"{key}={value}" for key, value in sorted(plugin.exports.items()))
        rows.append((plugin.type.removeprefix("io.containerd."), plugin.id, state, detail))
    click.echo()
    output.table(("PLUGIN", "ID", "STATE", "DETAIL"), rows)


async def events(client: Client, filters: Sequence[str]) -> None:
    async for event in client.events.subscribe(filters):
        time = rfc3339.render(event.timestamp)
        click.echo(f"{time} {event.namespace} {event.topic} {payload(event.event)}")


def payload(event: Typed) -> str:
    """A payload as JSON, or its type and length where the type is not known here."""
    try:
        message = symbol_database.Default().GetSymbol(event.type_name)()
        message.ParseFromString(event.value)
    except (KeyError, DecodeError):
        return f"{event.type_name} ({len(event.value)} bytes)"
    return json_format.MessageToJson(message, indent=None, preserving_proto_field_name=True)
