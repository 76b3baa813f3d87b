"""The labels that map users and groups of a container to those of the host."""

from __future__ import annotations

import re
from collections.abc import Mapping

from orlop.errors import Unknown

UID_LABEL = "containerd.io/snapshot/uidmapping"
GID_LABEL = "containerd.io/snapshot/gidmapping"

_EXTENT = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})", re.ASCII)
_MAX_ID = 2**32 - 2


def root_owner(labels: Mapping[str, str]) -> tuple[int, int] | None:
    """The host's uid and gid for the container's root; None where `labels` map nothing.

    Raises Unknown if a label cannot be read or maps no root.
    """
    if UID_LABEL not in labels and GID_LABEL not in labels:
        return None
    return _root_of(labels.get(UID_LABEL, "")), _root_of(labels.get(GID_LABEL, ""))


def _root_of(text: str) -> int:
    root = None
    for part in text.split(","):
        match = _EXTENT.fullmatch(part)
        if match is None:
            raise Unknown(
                f"failed to unmarshal snapshot ID mapped labels: input value {part} unparsable: "
                "expected <container>:<host>:<size>"
            )
        container, host, size = (int(number) for number in match.groups())
        if container > _MAX_ID or host + size > _MAX_ID + 1:
            raise Unknown(f"failed to unmarshal snapshot ID mapped labels: input value {part} unparsable: out of range")
        if container == 0 and size > 0 and root is None:
            root = host
    if root is None:
        raise Unknown(f'failed to find root pair: no extent of "{text}" maps ID 0')
    return root
