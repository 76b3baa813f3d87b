"""EROFS images mounted from files (Linux 6.12; Documentation/filesystems/erofs.rst), with no loop device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from orlop.mounts import syscalls as sc

_STRING_LIMIT = 255
"""Bytes that fsconfig(2) takes as a string."""


def mount_image(image: str, devices: Sequence[str], target: str) -> None:
    """Mounts `image`, whose data lie in the files `devices`, read-only at the directory `target`. Raises OSError.

    Devices and set-id programs work, as overlays above it need: the directory must be closed to others.
    """
    with contextlib.ExitStack() as stack:
        context = sc.fsopen("erofs")
        stack.callback(os.close, context)
        sc.fsconfig(context, sc.FSCONFIG_SET_STRING, "source", _short(stack, image))
        for device in devices:
            sc.fsconfig(context, sc.FSCONFIG_SET_STRING, "device", _short(stack, device))
        sc.fsconfig(context, sc.FSCONFIG_SET_FLAG, "ro")
        sc.fsconfig(context, sc.FSCONFIG_CMD_CREATE)
        made = sc.fsmount(context, sc.MOUNT_ATTR_RDONLY)
        stack.callback(os.close, made)
        sc.move_mount(made, target)


def _short(stack: contextlib.ExitStack, path: str) -> str:
    if len(os.fsencode(path)) <= _STRING_LIMIT:
        return path
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, file)
    return f"/proc/self/fd/{file}"
