"""Platforms: operating system and processor, as image indexes name them (OCI image-index, platform)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from orlop.errors import InvalidArgument

_MACHINES = {
    "x86_64": ("amd64", ""),
    "amd64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", "v8"),
    "arm64": ("arm64", "v8"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
}

_SYSTEMS = frozenset({"linux", "windows", "darwin", "freebsd", "wasi"})
_PART = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_SYSTEM = re.compile(r"([A-Za-z0-9_.-]+)(?:\(([A-Za-z0-9_.-]*)((?:\+[A-Za-z0-9_.-]+)*)\))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Platform:
    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def host() -> Platform:
    """The platform this machine runs natively. arm64 is v8 without saying so, as containerd shows it."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform("linux", architecture, "" if architecture == "arm64" else variant)


def parse(text: str) -> Platform:
    """What people write: `linux/arm64/v8`, `arm64` (of Linux), `windows(10.0.17763)/amd64`, `linux(+erofs)/amd64`.

    Other names of a processor become those of image indexes. Raises InvalidArgument for what is no platform.
    """
    first, *rest = text.split("/")
    system = _SYSTEM.fullmatch(first)
    if system is None or len(rest) > 2 or not all(_PART.fullmatch(part) for part in rest):
        raise InvalidArgument(f"platform {text!r}: not of the form os/architecture[/variant]")
    os_, version, features = system[1].lower(), system[2] or "", tuple((system[3] or "").split("+")[1:])
    if not rest:
        native = host()
        if os_ in _SYSTEMS:
            return Platform(os_, native.architecture, native.variant, version, features)
        os_, rest = "linux", [first]
    architecture, variant = _MACHINES.get(rest[0].lower(), (rest[0].lower(), ""))
    variant = rest[1].lower() if len(rest) == 2 else variant
    return Platform(os_, architecture, "" if (architecture, variant) == ("arm64", "v8") else variant, version, features)
