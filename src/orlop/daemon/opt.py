"""The plugin `io.containerd.internal.v1.opt`: a directory whose programs the daemon finds first."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from orlop.core.plugin import InitContext, PluginType, Registration
from orlop.errors import InvalidArgument


class OptConfig(msgspec.Struct):
    path: str = "/opt/orlop"


async def _opt(context: InitContext) -> Path:
    """Puts `<path>/bin` first in PATH. The directories are made by whoever installs something into them."""
    path = Path(context.config.path)
    if not path.is_absolute():
        raise InvalidArgument(f'opt path "{path}" must be absolute')
    context.meta.exports["path"] = str(path)
    first = f"{path}/bin"
    others = [part for part in os.environ.get("PATH", "").split(":") if part != first]
    os.environ["PATH"] = ":".join([first, *others])
    return path


REGISTRATIONS: tuple[Registration, ...] = (Registration(PluginType.INTERNAL, "opt", _opt, (), OptConfig),)
