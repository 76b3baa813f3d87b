"""Containers: run, list, execute in, kill, remove."""

from __future__ import annotations

import asyncio
import signal as signals
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec

from orlop.cli import attend, isolation, output
from orlop.cli.each import each
from orlop.client import Client
from orlop.client import run as running
from orlop.client.streams import Streams
from orlop.core.image import Image
from orlop.core.task import NewTask, Process, Status
from orlop.core.typed import PROCESS_URL, Typed
from orlop.errors import AlreadyExists, InvalidArgument, NotFound
from orlop.oci.spec import SpecOptions, environment


async def run(
    client: Client,
    *,
    image: str,
    id: str,
    command: Sequence[str],
    remove: bool,
    detach: bool,
    tty: bool,
    interactive: bool,
    env: Sequence[str],
    workdir: str,
    user: str,
    label: Sequence[str],
    read_only: bool,
    runtime: str,
    pull: str = "missing",
    group_add: Sequence[str],
    **flags: Any,
) -> int:
    if detach and remove:
        raise InvalidArgument.verbatim("--rm and --detach exclude each other: nobody would be there to remove it")
    if not detach:
        attend.check_terminal(tty)
    options = running.Options(
        spec=SpecOptions(
            args=command,
            environment=env,
            directory=workdir,
            terminal=tty,
            readonly_rootfs=read_only,
            **await isolation.options(client, flags),
        ),
        user=user,
        groups=group_add,
        labels=isolation.pairs(label, "label"),
        runtime=runtime,
    )
    found = await _image(client, image, pull)
    try:
        container = await running.create(client, found, id, options)
    except AlreadyExists as error:
        raise AlreadyExists.verbatim(f"{error}\nChoose another name, or remove it with 'orlop rm {id}'.") from None
    started = False
    try:
        async with _streams(id, detach=detach, interactive=interactive or tty, terminal=tty) as streams:
            mounts = await running.rootfs(client, container)
            await client.tasks.create(client.scope, NewTask(id, mounts, streams.io))
            if detach:
                await client.tasks.start(client.scope, id)
                started = True
                click.echo(id)
                return 0
            status = await attend.attend(client, streams, id)
            started = True
            await client.tasks.delete(client.scope, id)
            return status
    finally:
        if remove or not started:
            await asyncio.shield(_clear(client, id))


async def _image(client: Client, name: str, pull: str) -> Image:
    """The image to run, pulled where `pull` (`never`, `missing`, `always`) says so. Progress is on standard error."""
    if pull != "always":
        try:
            return await client.image(name)
        except NotFound as error:
            if pull == "never":
                raise NotFound.verbatim(
                    f"{error}\nGet it with 'orlop pull' or 'orlop import'; 'orlop images' lists what is here."
                ) from None
    from orlop.cli import transfers

    return await transfers.pull(client, name, options=transfers.registry_options())


async def execute(
    client: Client, *, id: str, command: Sequence[str], tty: bool, interactive: bool, env: Sequence[str], workdir: str
) -> int:
    attend.check_terminal(tty)
    container = await client.containers.get(client.scope, id)
    if container.spec is None:
        raise InvalidArgument(f'container "{id}": has no spec to take a process from')
    process = msgspec.json.decode(container.spec.value).get("process", {})
    process |= {"args": list(command), "terminal": tty, "env": environment(process.get("env", ()), env)}
    if workdir:
        process["cwd"] = workdir
    exec_id = f"exec-{uuid.uuid4().hex[:12]}"
    async with _streams(exec_id, detach=False, interactive=interactive or tty, terminal=tty) as streams:
        spec = Typed(PROCESS_URL, msgspec.json.encode(process))
        await client.tasks.exec(client.scope, id, exec_id, spec, streams.io)
        try:
            return await attend.attend(client, streams, id, exec_id)
        finally:
            await asyncio.shield(_clear_exec(client, id, exec_id))


def _streams(id: str, *, detach: bool, interactive: bool, terminal: bool) -> Streams:
    if detach:
        return Streams(id, stdin=None, stdout=None, stderr=None, terminal=terminal)
    return Streams(id, stdin=0 if interactive else None, stdout=1, stderr=2, terminal=terminal)


async def _clear(client: Client, id: str) -> None:
    """Removes a container that has ended or was never started."""
    try:
        await running.remove(client, id, force=True)
    except NotFound:
        return


async def _clear_exec(client: Client, id: str, exec_id: str) -> None:
    try:
        process = await client.tasks.get(client.scope, id, exec_id)
        if process.status == Status.RUNNING:
            await client.tasks.kill(client.scope, id, exec_id, signals.SIGKILL)
            await client.tasks.wait(client.scope, id, exec_id)
        await client.tasks.delete_process(client.scope, id, exec_id)
    except NotFound:
        return  # it went with its container


async def show(client: Client, *, everything: bool, quiet: bool) -> None:
    tasks: dict[str, Process] = {task.container_id: task for task in await client.tasks.list(client.scope)}
    rows = []
    for container in await client.containers.list(client.scope):
        task = tasks.get(container.id)
        running_ = task is not None and task.status in (Status.RUNNING, Status.PAUSED, Status.PAUSING)
        if not (everything or running_):
            continue
        rows.append(
            (
                container.id,
                container.image,
                _state(task),
                str(task.pid) if task is not None and running_ else "-",
                output.age(container.created_at),
            )
        )
    if quiet:
        for row in rows:
            click.echo(row[0])
    else:
        output.table(("ID", "IMAGE", "STATE", "PID", "CREATED"), rows)


def _state(task: Process | None) -> str:
    if task is None:
        return "no task"
    if task.status == Status.STOPPED:
        return f"exited ({task.exit_status})"
    return task.status.name.lower()


async def kill(client: Client, ids: Iterable[str], signal: str) -> int:
    number = _signal(signal)
    return await each(ids, lambda name: client.tasks.kill(client.scope, name, signal=number))


async def remove(client: Client, ids: Iterable[str], *, force: bool) -> int:
    return await each(ids, lambda name: running.remove(client, name, force=force))


def _signal(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    try:
        return signals.Signals[name]
    except KeyError:
        raise InvalidArgument.verbatim(f"signal {text!r}: unknown (KILL, TERM, HUP and so on, or a number)") from None
