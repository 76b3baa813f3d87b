"""Hybrid cgroups as crun wants them: a cgroup2 mount beside v1 controllers that has no controllers itself.

crun creates no container where `/sys/fs/cgroup/unified/cgroup.controllers` names any ("cgroups in hybrid mode not
supported, drop all controllers from cgroupv2"). It is therefore started in a mount namespace of its own where that file
is empty. Nothing else is hidden, so that crun puts containers into cgroups of both kinds and removes them again; all
other mounts keep their propagation. Only `create` looks at that file.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

from orlop.shim import files

UNIFIED = "/sys/fs/cgroup/unified"
_CONTROLLERS = f"{UNIFIED}/cgroup.controllers"
_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_PRIVATE = 1 << 12, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def has_controllers() -> bool:
    """Whether this host's cgroups are hybrid in the way that crun refuses."""
    try:
        return bool(files.read(_CONTROLLERS).strip())
    except OSError:
        return False


@contextlib.contextmanager
def without_controllers() -> Iterator[None]:
    """The calling thread is in a mount namespace where the cgroup2 mount shows no controllers while this lasts.

    What is started meanwhile stays there; the namespace ends with it. Raises OSError.
    """
    with contextlib.ExitStack() as stack:
        home, root, here = (_opened(stack, path) for path in ("/proc/self/ns/mnt", "/", "."))
        _check(_libc.unshare(_CLONE_NEWNS), "unshare")
        try:
            # What is mounted below is then not mounted in the host's namespace too.
            _mount(b"none", UNIFIED, _MS_PRIVATE)
            _mount(os.devnull.encode(), _CONTROLLERS, _MS_BIND)
            yield
        finally:
            _return(home, root, here)


def _return(home: int, root: int, here: int) -> None:
    """Back to where this process belongs. One that cannot go back ends: its mounts would be nobody's."""
    try:
        _check(_libc.setns(home, _CLONE_NEWNS), "setns")
        # Entering a namespace leads to its root, which need not be ours.
        os.fchdir(root)
        os.chroot(".")
        os.fchdir(here)
    except OSError as error:
        raise SystemExit(f"cannot go back to the host's mounts: {error}") from error


def _opened(stack: contextlib.ExitStack, path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


def _mount(source: bytes, target: str, flags: int) -> None:
    _check(_libc.mount(source, target.encode(), None, ctypes.c_ulong(flags), None), target)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
