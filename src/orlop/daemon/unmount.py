"""`orlopd unmount`: takes off what a daemon that has ended left mounted, so that its directories can be removed.

Layers stay mounted while containers go on over them, and a daemon that was killed unmounts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orlop.daemon import directories
from orlop.errors import FailedPrecondition
from orlop.mounts import mountinfo
from orlop.mounts.mount import unmount_all
from orlop.mounts.mountinfo import MountEntry

if TYPE_CHECKING:
    from orlop.daemon.config import Config

_OURS = frozenset(("erofs", "overlay"))


def unmount(config: Config) -> Sequence[str]:
    """Takes off what was mounted below the root, and what snapshotters have elsewhere; returns where.

    Raises FailedPrecondition while a daemon runs there, or a container has its file system mounted.
    """
    root, state = (os.path.realpath(path) for path in (config.root, config.state))
    if not os.path.isdir(root):
        return []
    directories.prepare(Path(root), Path(state))
    with directories.lock(Path(root), Path(state)):
        table = mountinfo.read()
        if containers := [_shown(entry) for entry in table if entry.lies_below(os.fsencode(state))]:
            raise FailedPrecondition.verbatim(
                f"{len(containers)} file systems of containers are still mounted, the first at {containers[0]}: "
                "end the containers first"
            )
        configured = [str(settings.get("root_path") or "") for settings in config.plugins.values()]
        places = [root, *(os.path.realpath(path) for path in configured if path)]
        points = [_shown(entry) for place in places for entry in table if _is_ours(entry, place)]
        for point in reversed(points):
            unmount_all(point)
        return points


def _is_ours(entry: MountEntry, place: str) -> bool:
    """Whether it is none of the administrator's: a disk, perhaps, that part of the root lies on."""
    if not entry.lies_below(os.fsencode(place)) or entry.point == os.fsencode(place):
        return False
    temporary = entry.lies_below(os.fsencode(os.path.join(place, "tmpmounts")))
    return temporary or entry.type in _OURS or entry.source.startswith(b"/dev/loop")


def _shown(entry: MountEntry) -> str:
    return os.fsdecode(entry.point)
