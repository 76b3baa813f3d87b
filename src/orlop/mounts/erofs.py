"""EROFS images mounted from files (Linux 6.12; Documentation/filesystems/erofs.rst), with no loop device.

What is read lies in the page cache of the mount, which all who use the mount share. It comes there through the page
cache of the file, where it lies a second time, or, read directly, past it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from orlop.mounts import syscalls as sc
from orlop.mounts.options import attributes

READAHEAD = 1024
"""KiB that the kernel reads ahead in a file; its own 128 are too few for a disk that has more than one request."""

_STRING_LIMIT = 255
"""Bytes that fsconfig(2) takes as a string."""
_BDI = Path("/sys/class/bdi")

_one_at_a_time = threading.Lock()
_log = logging.getLogger(__name__)


def mount_image(
    image: str,
    devices: Sequence[str],
    target: str,
    *,
    flags: int = sc.MS_RDONLY,
    data: Sequence[str] = (),
    direct: bool = False,
) -> None:
    """Mounts `image`, whose data lie in the files `devices`, at the directory `target`. Raises OSError.

    `flags` are those of mount(2), `data` further options of the file system. `direct`: data are read past the page
    cache of their files, which must allow that at any multiple of the image's block; an old kernel refuses (EINVAL).
    Devices and set-id programs work, as overlays above the mount need, unless `flags` say otherwise: the directory must
    be closed to others.
    """
    with contextlib.ExitStack() as stack:
        context = sc.fsopen("erofs")
        stack.callback(os.close, context)
        sc.fsconfig(context, sc.FSCONFIG_SET_STRING, "source", _short(stack, image))
        for device in devices:
            sc.fsconfig(context, sc.FSCONFIG_SET_STRING, "device", _short(stack, device))
        for option in (*data, "directio") if direct else data:
            key, equals, value = option.partition("=")
            if equals:
                sc.fsconfig(context, sc.FSCONFIG_SET_STRING, key, value)
            else:
                sc.fsconfig(context, sc.FSCONFIG_SET_FLAG, key)
        if flags & sc.MS_RDONLY:
            sc.fsconfig(context, sc.FSCONFIG_SET_FLAG, "ro")
        _create(context)
        made = sc.fsmount(context, attributes(flags))
        stack.callback(os.close, made)
        sc.move_mount(made, target)


def is_cached(paths: Sequence[str]) -> bool:
    """Whether most of the files `paths` lie in the page cache (cachestat(2), Linux 6.5)."""
    cached = pages = 0
    for path in paths:
        try:
            with open(path, "rb", buffering=0) as file:
                cached += sc.cached_pages(file.fileno())
                pages += -(-os.fstat(file.fileno()).st_size // os.sysconf("SC_PAGESIZE"))
        except OSError:
            return False
    return cached * 2 > pages


def _create(context: int) -> None:
    """Makes the file system of `context`, and has the kernel read further ahead in it.

    Its device for that has a number that nothing tells: it is the one that was not there before.
    """
    with _one_at_a_time:
        before = _backing_devices()
        sc.fsconfig(context, sc.FSCONFIG_CMD_CREATE)
        made = _backing_devices() - before
    try:
        if len(made) != 1:
            raise FileNotFoundError(f"{len(made)} new ones in {_BDI}")
        file = _BDI / made.pop() / "read_ahead_kb"
        if int(file.read_text()) < READAHEAD:
            file.write_text(str(READAHEAD))
    except (OSError, ValueError) as error:
        _log.debug("readahead of an EROFS mount stays as the kernel has it: %s", error)


def _backing_devices() -> set[str]:
    try:
        return {name for name in os.listdir(_BDI) if name.startswith("erofs")}
    except OSError:
        return set()


def _short(stack: contextlib.ExitStack, path: str) -> str:
    if len(os.fsencode(path)) <= _STRING_LIMIT:
        return path
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, file)
    return f"/proc/self/fd/{file}"
