"""Logging in to registries: a credential is tried, then kept where docker's client keeps them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

import click

from orlop.cli.target import Target
from orlop.client import connect
from orlop.core.plugin import PluginType
from orlop.core.registry import Credential
from orlop.errors import InvalidArgument, OrlopError
from orlop.registry import docker_config, login, plugin
from orlop.registry.docker_config import DockerConfig
from orlop.registry.hosts import DOCKER
from orlop.registry.settings import HOST_DIRS

_SECRET_LIMIT = 64 << 10
_PATIENCE = 5.0
"""Seconds for the daemon to say where it looks."""


class _Given:
    """A credential, whoever asks; `asked` tells whether anybody has."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential
        self.asked = False

    async def of(self, host: str, reference: str, challenges: Sequence[str]) -> Credential:
        self.asked = True
        return self._credential


def _file() -> DockerConfig:
    return DockerConfig(docker_config.default_path(os.environ))


async def log_in(target: Target, host: str, *, user: str, from_stdin: bool, hosts_dir: str, plain_http: bool) -> None:
    host = host or DOCKER
    user = user or _prompt("User")
    secret = _from_stdin() if from_stdin else _prompt(f"Password of {user} at {host}", hidden=True)
    if not user or not secret:
        raise InvalidArgument.verbatim("a user and a password are needed")
    credential = Credential(user, secret)
    given = _Given(credential)
    host_dirs = [os.path.abspath(hosts_dir)] if hosts_dir else await _host_dirs(target)
    await login.check(host, given, host_dirs=host_dirs, default_scheme="http" if plain_http else "")
    if not given.asked:
        click.echo(f"orlop: {host} asked for no credentials: these were not tried", err=True)
    where = await _file().store(host, credential)
    click.echo(f"Logged in to {host}; kept in {where}")


async def _host_dirs(target: Target) -> Sequence[str]:
    """Where the daemon looks for `hosts.toml`; where there is none that answers, the standard directories."""
    try:
        async with asyncio.timeout(_PATIENCE), connect(target.address) as client:
            found = await client.introspection.plugins([f"type=={PluginType.INTERNAL},id=={plugin.ID}"])
    except (OrlopError, TimeoutError):
        return HOST_DIRS
    said = [one.exports[plugin.HOST_DIRS_EXPORT] for one in found if plugin.HOST_DIRS_EXPORT in one.exports]
    return list(filter(None, said[0].split(":"))) if said else HOST_DIRS


async def log_out(host: str) -> int:
    host = host or DOCKER
    where = await _file().erase(host)
    if not where:
        click.echo(f"orlop: not logged in to {host}", err=True)
        return 1
    click.echo(f"Logged out of {host}; removed from {where}")
    return 0


def _from_stdin() -> str:
    data = sys.stdin.buffer.read(_SECRET_LIMIT + 1)
    if len(data) > _SECRET_LIMIT:
        raise InvalidArgument.verbatim(f"a password of more than {_SECRET_LIMIT} bytes")
    try:
        return data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise InvalidArgument.verbatim("the password on standard input is no UTF-8 text") from None


def _prompt(text: str, *, hidden: bool = False) -> str:
    if not os.isatty(0):
        option = "--password-stdin" if hidden else "--user"
        raise InvalidArgument.verbatim(f"no terminal to ask for the {text.partition(' ')[0].lower()} at: use {option}")
    answer: str = click.prompt(text, hide_input=hidden, err=True)
    return answer
