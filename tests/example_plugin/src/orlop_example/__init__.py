"""An example of a package that extends orlop: the snapshotter `example`.

It keeps snapshots as the native one does; what it shows is how a package is found, configured and closed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from orlop.core import platform
from orlop.core.plugin import InitContext, PluginType, Registration, SkipPlugin

if TYPE_CHECKING:
    from orlop.core.snapshot import Snapshotter


class ExampleConfig(msgspec.Struct):
    """The section `[plugins.'io.containerd.snapshotter.v1.example']`."""

    root_path: str = ""
    enabled: bool = True


async def _example(context: InitContext) -> Snapshotter:
    from orlop.snapshots.native import NativeSnapshotter

    config: ExampleConfig = context.config
    if not config.enabled:
        raise SkipPlugin("the example is switched off")
    root = Path(config.root_path) if config.root_path else context.make_root()
    snapshotter = NativeSnapshotter(root)
    context.meta.platforms.append(platform.host())
    context.meta.exports["root"] = str(root)
    context.meta.capabilities.append("example")
    context.ready.append(snapshotter.cleanup)
    context.closing.append(snapshotter.close)
    return snapshotter


REGISTRATIONS = (Registration(PluginType.SNAPSHOTTER, "example", _example, config=ExampleConfig),)
