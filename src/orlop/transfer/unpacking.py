"""Which images a transfer unpacks, and by what: the daemon's unpack configurations beside what a client asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from orlop.core import media
from orlop.core.diff import Differ
from orlop.core.platform import Platform
from orlop.core.snapshot import EXTRACTING
from orlop.core.transfer import UnpackRequest
from orlop.images import select

DEFAULT_SNAPSHOTTER = "overlayfs"
MARKS = {EXTRACTING: "true"}
"""Labels of snapshots that this daemon fills, and nobody else."""


@dataclass(frozen=True, slots=True)
class UnpackTarget:
    """A snapshotter with the differ that fills it, for images of `platform`.

    `config_type` and `layer_types` are what it takes besides images and their layers; empty for nothing else.
    """

    platform: Platform
    snapshotter: str
    differ: Differ
    check_platform: bool = False
    """The processor must fit too, not only the operating system."""
    config_type: str = ""
    layer_types: Sequence[str] = ()
    at_once: int = 1
    """Layers that are unpacked at a time; more than one needs a snapshotter that can rebase."""
    remote: bool = False
    """The snapshotter may fetch layers itself and wants to know where they are."""

    def fits(self, platform: Platform) -> bool:
        if self.check_platform:
            return select.rank(platform, self.platform) is not None
        return platform.os == self.platform.os and set(platform.os_features) <= set(self.platform.os_features)

    def takes_config(self, media_type: str) -> bool:
        return media_type == self.config_type if self.config_type else media_type in media.CONFIGS

    def takes_layer(self, media_type: str) -> bool:
        return media.is_layer(media_type) or media_type in self.layer_types


@dataclass(frozen=True, slots=True)
class Unpacks:
    """The unpack targets that a client's requests have matched, each with the platform that was asked for."""

    matched: Sequence[tuple[Platform, UnpackTarget]] = field(default_factory=tuple)

    @classmethod
    def of(cls, requests: Iterable[UnpackRequest], targets: Sequence[UnpackTarget]) -> Unpacks:
        """A request that no target fits is left out: then the image is stored without being unpacked."""
        found = ((request.platform, _target(request, targets)) for request in requests)
        return cls([(platform, target) for platform, target in found if target is not None])

    def target(self, config_type: str, platform: Platform) -> UnpackTarget | None:
        """By what an image with such a config is unpacked; None if it is not."""
        for wanted, target in self.matched:
            if target.takes_config(config_type) and target.fits(platform) and _runs(platform, wanted):
                return target
        return None

    def is_layer(self, media_type: str) -> bool:
        return media.is_layer(media_type) or any(target.takes_layer(media_type) for _, target in self.matched)


def _target(request: UnpackRequest, targets: Sequence[UnpackTarget]) -> UnpackTarget | None:
    fitting = [target for target in targets if target.fits(request.platform)]
    if request.snapshotter:
        return next((target for target in fitting if target.snapshotter == request.snapshotter), None)
    default = next((target for target in fitting if target.snapshotter == DEFAULT_SNAPSHOTTER), None)
    return default or next(iter(fitting), None)


def _runs(platform: Platform, wanted: Platform) -> bool:
    """Whether an image is for what was asked for. One that names no processor is for any."""
    return not platform.architecture or select.rank(platform, wanted) is not None
