"""Overlays whose options do not fit the page that mount(2) takes: images of a hundred layers and more.

Linux 6.8 takes the layers one by one (`lowerdir+`). Older ones get paths relative to the directory that all layers
share, from a thread with a working directory of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Sequence

from orlop.errors import Unknown
from orlop.mounts import syscalls as sc
from orlop.mounts.options import attributes, escape_lower, split_lowers

_STRING_LIMIT = 255
"""Bytes that fsconfig(2) takes as a string; longer paths are given as descriptors (Linux 6.13)."""


def mount_deep(source: str, target: str, flags: int, data: Sequence[str]) -> None:
    """Mounts an overlay at `target`. Raises OSError; Unknown where this kernel cannot take so many layers."""
    try:
        _mount_by_parts(source, target, flags, data)
    except OSError as error:
        # Unknown call, unknown key, or a sandbox that forbids the new calls: an older kernel's way may still do.
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
            raise
        mount_relative(source, target, flags, data)


def _mount_by_parts(source: str, target: str, flags: int, data: Sequence[str]) -> None:
    made = detached(source, flags, data)
    try:
        sc.move_mount(made, target)
    finally:
        os.close(made)


def detached(source: str, flags: int, data: Sequence[str]) -> int:
    """A descriptor of an overlay that is mounted nowhere, and goes when that is closed. Raises OSError."""
    with contextlib.ExitStack() as stack:
        context = sc.fsopen("overlay")
        stack.callback(os.close, context)
        sc.fsconfig(context, sc.FSCONFIG_SET_STRING, "source", source)
        for option in data:
            key, equals, value = option.partition("=")
            if key == "lowerdir":
                layers, data_only = split_lowers(value)
                for layer in layers:
                    _set_directory(context, "lowerdir+", layer)
                for layer in data_only:
                    _set_directory(context, "datadir+", layer)
            elif key in {"upperdir", "workdir"}:
                _set_directory(context, key, value)
            elif equals:
                sc.fsconfig(context, sc.FSCONFIG_SET_STRING, key, value)
            else:
                sc.fsconfig(context, sc.FSCONFIG_SET_FLAG, key)
        if flags & sc.MS_RDONLY:
            sc.fsconfig(context, sc.FSCONFIG_SET_FLAG, "ro")
        sc.fsconfig(context, sc.FSCONFIG_CMD_CREATE)
        return sc.fsmount(context, attributes(flags))


def _set_directory(context: int, key: str, path: str) -> None:
    if len(os.fsencode(path)) <= _STRING_LIMIT:
        sc.fsconfig(context, sc.FSCONFIG_SET_STRING, key, path)
        return
    directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sc.fsconfig(context, sc.FSCONFIG_SET_FD, key, None, directory)
    finally:
        os.close(directory)


def mount_relative(source: str, target: str, flags: int, data: Sequence[str]) -> None:
    """As `mount_deep`, for kernels before 6.8."""
    lowers = next((option.partition("=")[2] for option in data if option.startswith("lowerdir=")), "")
    layers, data_only = split_lowers(lowers)
    if data_only or len(layers) < 2 or not all(os.path.isabs(layer) for layer in layers):
        raise Unknown("mount options is too long")
    base = os.path.commonpath(layers)
    relative = ":".join(escape_lower(os.path.relpath(layer, base)) for layer in layers)
    text = ",".join(f"lowerdir={relative}" if option.startswith("lowerdir=") else option for option in data)
    if len(os.fsencode(text)) >= os.sysconf("SC_PAGESIZE"):
        raise Unknown("mount options is too long")
    absolute = os.path.abspath(target)
    failures: list[OSError] = []

    # A process has one working directory for all its threads, unless a thread parts from it: so this one must end.
    def work() -> None:
        try:
            sc.unshare_working_directory()
            os.chdir(base)
            sc.mount(source, absolute, "overlay", flags, text)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="overlay-mount")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
