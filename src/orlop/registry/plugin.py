"""The plugin that reaches registries: `io.containerd.internal.v1.registries`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from orlop.core import duration
from orlop.core.plugin import InitContext, PluginType, Registration
from orlop.errors import InvalidArgument
from orlop.registry.settings import HOST_DIRS, Settings

if TYPE_CHECKING:
    from orlop.registry.registries import HttpRegistries

ID = "registries"
HOST_DIRS_EXPORT = "host_dirs"
"""By which clients are told where the daemon reads `<host>/hosts.toml`: directories, separated by colons."""


class RegistriesConfig(msgspec.Struct, kw_only=True):
    """`config_path` holds directories of `<host>/hosts.toml`, separated by colons; the other names are `Settings`'."""

    config_path: str = ":".join(HOST_DIRS)
    credentials_file: str = ""
    attempts: int = 5
    retry_delay: str = "200ms"
    dial_timeout: str = "30s"
    stall_timeout: str = "60s"
    ranges_from: int = 16 << 20
    range_size: int = 2 << 20
    ranges: int = 4
    extra_ranges: int = 8
    single_rate: int = 64 << 20
    bandwidth: int = 0
    upload_chunk: int = 0


async def _registries(context: InitContext) -> HttpRegistries:
    from orlop.registry.registries import HttpRegistries

    config: RegistriesConfig = context.config
    for name in ("attempts", "ranges_from", "range_size", "ranges"):
        if getattr(config, name) < 1:
            raise InvalidArgument(f"{name} = {getattr(config, name)}: must be at least 1")
    context.meta.exports[HOST_DIRS_EXPORT] = config.config_path
    registries = HttpRegistries(
        Settings(
            host_dirs=tuple(filter(None, config.config_path.split(":"))),
            credentials_file=config.credentials_file,
            attempts=config.attempts,
            retry_delay=duration.parse(config.retry_delay) / 1e9,
            dial_timeout=duration.parse(config.dial_timeout) / 1e9,
            stall_timeout=duration.parse(config.stall_timeout) / 1e9,
            ranges_from=config.ranges_from,
            range_size=config.range_size,
            ranges=config.ranges,
            extra_ranges=config.extra_ranges,
            single_rate=config.single_rate,
            bandwidth=config.bandwidth,
            upload_chunk=config.upload_chunk,
            user_agent=f"orlop/{context.daemon.version}",
        )
    )
    context.closing.append(registries.close)
    return registries


REGISTRATIONS: tuple[Registration, ...] = (Registration(PluginType.INTERNAL, ID, _registries, config=RegistriesConfig),)
