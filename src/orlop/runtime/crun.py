"""What the installed crun can do, and what it would pass over in silence.

crun leaves out what it does not know of a spec, without a word. Before 1.15 it also refuses any `ociVersion` whose text
does not have "1.0" in it ("unknown version specified"), whatever the document uses. So the version is not what counts
but the additions that are used: those that the runtime-spec has made since 1.0.2, each with the crun that first honours
it, by the change logs of both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

Version = tuple[int, ...]

NEWEST_SPEC = (1, 3)
"""The minor version of the runtime-spec up to which the additions are listed here."""
_TAKES_ANY_VERSION = (1, 15)
_TAKEN_VERSION = "1.1.0"
_MAPPED_MOUNTS = (1, 9)
_ADDITIONS: Mapping[str, Version] = {
    "domainname": (1, 5),
    "process.execCPUAffinity": (1, 19),
    "process.ioPriority": (1, 8, 6),
    "process.scheduler": (1, 8, 5),
    "linux.intelRdt.enableMonitoring": (1, 24),
    "linux.intelRdt.schemata": (1, 23),
    "linux.memoryPolicy": (1, 24),
    "linux.netDevices": (1, 22),
    "linux.resources.cpu.burst": (1, 11),
    "linux.resources.cpu.idle": (1, 5),
    "linux.resources.memory.checkBeforeUpdate": (1, 7),
}
_PLACES = tuple((name, tuple(name.split(".")), since) for name, since in _ADDITIONS.items())
_HOST_HOOKS = ("prestart", "createRuntime")
"""Hooks of `create` that run among the runtime's mounts."""


@dataclass(frozen=True, slots=True)
class Crun:
    version: Version = ()
    has_criu: bool = False
    is_apart: bool = False
    """It is started in a mount namespace of its own, as this host's cgroups are hybrid."""

    @classmethod
    def of(cls, text: str, *, is_apart: bool = False) -> Crun:
        """From what `crun --version` prints. Raises ValueError if that is not crun's."""
        match = re.search(r"^crun version (\d{1,6}(?:\.\d{1,6})*)", text, re.ASCII | re.MULTILINE)
        if match is None:
            raise ValueError("prints no version of crun")
        version = tuple(int(part) for part in match[1].split("."))
        return cls(version, "+CRIU" in text.split(), is_apart)

    def __str__(self) -> str:
        return f"crun {'.'.join(map(str, self.version))}"

    def why_not(self, spec: bytes) -> str:
        """Why a container of `spec` is better run by runc; empty if it is not."""
        document = _decoded(spec)
        if not (1, 0) <= _spec_version(document) <= NEWEST_SPEC:
            return f"ociVersion {document.get('ociVersion')!r}"
        for name, since in _used(document):
            if self.version < since:
                return f"{name} is new in crun {'.'.join(map(str, since))}"
        if all(mount.get("destination") not in ("/dev", "/dev/") for mount in _list(document, "mounts")):
            return "no mount at /dev, which crun does not make"
        return _shares_mounts(document) if self.is_apart else ""

    def taken(self, spec: bytes) -> bytes:
        """`spec` with an `ociVersion` that this crun takes; nothing else is another. Call where it is not refused."""
        if self.version >= _TAKES_ANY_VERSION:
            return spec
        try:
            fields = msgspec.json.decode(spec, type=dict[str, msgspec.Raw])
            version = msgspec.json.decode(fields["ociVersion"], type=str)
        except (KeyError, msgspec.MsgspecError):
            return spec
        if "1.0" in version:
            return spec
        fields["ociVersion"] = msgspec.Raw(msgspec.json.encode(_TAKEN_VERSION))
        return msgspec.json.encode(fields)


def _decoded(spec: bytes) -> dict[str, Any]:
    """The document; one without a word where it cannot be read, which the runtime will say better."""
    try:
        return msgspec.json.decode(spec, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {}


def _spec_version(document: Mapping[str, Any]) -> Version:
    """Major and minor; that of the first release where there is none to be read."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})", str(document.get("ociVersion")), re.ASCII)
    return (int(match[1]), int(match[2])) if match else (1, 0)


def _used(document: Mapping[str, Any]) -> Iterator[tuple[str, Version]]:
    """The additions that `document` uses, each with the first crun that honours it."""
    for name, place, since in _PLACES:
        if _at(document, place) not in (None, "", [], {}):
            yield name, since
    for mount in _list(document, "mounts"):
        if (
            mount.get("uidMappings")
            or mount.get("gidMappings")
            or {"idmap", "ridmap"} & set(mount.get("options") or ())
        ):
            yield f"mount {mount.get('destination')!r} with mapped ids", _MAPPED_MOUNTS


def _shares_mounts(document: Mapping[str, Any]) -> str:
    """Why the container would miss the host's own mount namespace; empty if it would not."""
    if all(namespace.get("type") != "mount" for namespace in _list(document, "linux.namespaces")):
        return "the container is in the host's mount namespace"
    for name in _HOST_HOOKS:
        if _list(document, f"hooks.{name}"):
            return f"hooks of {name} run in the host's mount namespace"
    return ""


def _at(document: Mapping[str, Any], place: Sequence[str]) -> Any:
    found: Any = document
    for name in place:
        if not isinstance(found, dict):
            return None
        found = found.get(name)
    return found


def _list(document: Mapping[str, Any], path: str) -> Sequence[Mapping[str, Any]]:
    """The objects of a list; nothing for what is none."""
    found = _at(document, path.split("."))
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
