"""The plugins of this room: the image verifier that asks the programs of a directory, and checks of what is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from orlop.core.layer import LayerKeeper
from orlop.core.plugin import InitContext, PluginType, Registration

if TYPE_CHECKING:
    from orlop.images.integrity import Checks
    from orlop.images.verifiers import DirectoryVerifier


class VerifierConfig(msgspec.Struct, kw_only=True):
    """`max_verifiers` below 0 is no limit; `per_verifier_timeout` is a Go duration."""

    bin_dir: str = "/opt/orlop/image-verifier/bin"
    max_verifiers: int = 10
    per_verifier_timeout: str = "10s"


async def _verifier(context: InitContext) -> DirectoryVerifier:
    from orlop.core import duration
    from orlop.errors import InvalidArgument
    from orlop.images.verifiers import DirectoryVerifier

    config: VerifierConfig = context.config
    seconds = duration.parse(config.per_verifier_timeout) / 1e9
    if seconds <= 0:
        raise InvalidArgument(f"per_verifier_timeout {config.per_verifier_timeout!r}: must be more than nothing")
    context.meta.exports["bin_dir"] = config.bin_dir
    return DirectoryVerifier(config.bin_dir, config.max_verifiers, seconds)


async def _integrity(context: InitContext) -> Checks:
    from orlop.images.integrity import Checks

    keepers = [one for one in context.get_all(PluginType.SNAPSHOTTER).values() if isinstance(one, LayerKeeper)]
    return Checks(context.get(PluginType.METADATA).content, context.get(PluginType.CONTENT), keepers)


REGISTRATIONS: tuple[Registration, ...] = (
    Registration(PluginType.IMAGE_VERIFIER, "bindir", _verifier, config=VerifierConfig),
    Registration(
        PluginType.SERVICE,
        "integrity-service",
        _integrity,
        (PluginType.METADATA, PluginType.CONTENT, PluginType.SNAPSHOTTER),
    ),
)
