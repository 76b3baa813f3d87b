"""Mounts with mapped ids in a container's spec: only runtimes that say they can are asked for them.

An older one (runc before 1.2) passes over the mapping and mounts the files with the host's owners.
"""

from __future__ import annotations

import msgspec

from orlop.errors import FailedPrecondition


class _Mount(msgspec.Struct, rename="camel"):
    destination: str = ""
    options: list[str] | None = None
    uid_mappings: list[msgspec.Raw] | None = None
    gid_mappings: list[msgspec.Raw] | None = None


class _Spec(msgspec.Struct):
    mounts: list[_Mount] | None = None


class _Idmap(msgspec.Struct):
    enabled: bool | None = None


class _Extensions(msgspec.Struct):
    idmap: _Idmap | None = None


class _Linux(msgspec.Struct, rename="camel"):
    mount_extensions: _Extensions | None = None


class _Features(msgspec.Struct):
    linux: _Linux | None = None


def first_mapped(spec: bytes | None) -> str:
    """The destination of the first mount of `spec` whose ids are mapped; empty if there is none, or no spec."""
    if spec is None or not any(word in spec for word in (b"Mappings", b"idmap")):
        return ""
    try:
        mounts = msgspec.json.decode(spec, type=_Spec).mounts or []
    except msgspec.MsgspecError:
        return ""  # the runtime will say it better
    for mount in mounts:
        if mount.uid_mappings or mount.gid_mappings or {"idmap", "ridmap"} & set(mount.options or ()):
            return mount.destination
    return ""


def refuse_unless_able(destination: str, runtime: str, features: bytes | None) -> None:
    """Raises FailedPrecondition unless `features`, what `runtime features` prints, has `mountExtensions.idmap`."""
    try:
        found = msgspec.json.decode(features or b"{}", type=_Features)
    except msgspec.MsgspecError:
        found = _Features()
    extensions = found.linux.mount_extensions if found.linux else None
    if not (extensions and extensions.idmap and extensions.idmap.enabled):
        raise FailedPrecondition(
            f'mount "{destination}" with mapped ids: the runtime "{runtime}" does not support it '
            "(runc does from version 1.2 on)"
        )
