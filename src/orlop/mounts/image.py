"""File systems in files, looked at while others may use them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from orlop.mounts import loop
from orlop.mounts import syscalls as sc


@contextlib.contextmanager
def opened(image: str, kind: str) -> Iterator[int]:
    """The root directory of the file system of type `kind` in the file `image`, for reading, mounted nowhere.

    One that is mounted is seen as its users see it: two block devices of one file would know nothing of each other.
    One that is not is put in order first, as its journal says. Raises OSError.
    """
    with contextlib.ExitStack() as closing:
        device = loop.device_of(image) or closing.enter_context(loop.attached(image, readonly=False))
        context = sc.fsopen(kind)
        closing.callback(os.close, context)
        sc.fsconfig(context, sc.FSCONFIG_SET_STRING, "source", device)
        sc.fsconfig(context, sc.FSCONFIG_CMD_CREATE)
        attributes = sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_NOEXEC
        root = sc.fsmount(context, attributes)
        closing.callback(os.close, root)
        yield root
