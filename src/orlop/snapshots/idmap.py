"""The labels that map users and groups of a container to those of the host."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from orlop.errors import Unknown
from orlop.mounts.mount import unmount_all

UID_LABEL = "containerd.io/snapshot/uidmapping"
GID_LABEL = "containerd.io/snapshot/gidmapping"

_EXTENT = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})", re.ASCII)
_MAX_ID = 2**32 - 2
_PROBE_TIMEOUT = 30.0


def mount_options(labels: Mapping[str, str]) -> tuple[str, ...]:
    """What asks whoever mounts a snapshot with these labels for mapped ids."""
    pairs = (("uidmap", labels.get(UID_LABEL)), ("gidmap", labels.get(GID_LABEL)))
    return tuple(f"{name}={value}" for name, value in pairs if value is not None)


def why_not_mapped(root: Path) -> str:
    """Why overlays on the file system of `root` cannot have lower directories with mapped ids; empty if they can.

    It is tried, by the code that a shim mounts with: kernel (5.19 and later), file system and privilege all count.
    """
    with tempfile.TemporaryDirectory(prefix="probe-idmap-", dir=root) as directory:
        command = [sys.executable, "-I", "-m", "orlop.shim.idmap", directory]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_PROBE_TIMEOUT, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        finally:
            unmount_all(directory)  # what a trial has left that was killed, as it took too long
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return "" if done.returncode == 0 else (said[-1] if said else f"exit status {done.returncode}")


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
