"""Mounting and unmounting.

Whatever fails leaves nothing mounted. These calls block: the event loop runs them in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from orlop.core.mount import Mount
from orlop.errors import Unimplemented, Unknown
from orlop.mounts import erofs, loop, mountinfo, overlay
from orlop.mounts import syscalls as sc
from orlop.mounts.options import Options, parse

_PAGE = os.sysconf("SC_PAGESIZE")
_RESERVE = 512
"""Of the page that mount(2) takes as data, what is left to the kernel's own additions."""

_BUSY_TRIES = 10
_BUSY_PAUSE = 0.02
"""Seconds; a mount is busy for moments while a process that inherited a descriptor of it is about to exec."""

_INHERITED = {
    os.ST_RDONLY: sc.MS_RDONLY,
    os.ST_NOSUID: sc.MS_NOSUID,
    os.ST_NODEV: sc.MS_NODEV,
    os.ST_NOEXEC: sc.MS_NOEXEC,
    os.ST_NODIRATIME: sc.MS_NODIRATIME,
    os.ST_NOATIME: sc.MS_NOATIME,
    os.ST_RELATIME: sc.MS_RELATIME,
}
_ATIME = sc.MS_NOATIME | sc.MS_RELATIME | sc.MS_STRICTATIME
_PER_MOUNT = _ATIME | sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC | sc.MS_NODIRATIME | sc.MS_NOSYMFOLLOW


class MountError(Unknown):
    """The kernel refused; `errno` is its reason."""

    errno: int = 0

    @classmethod
    def of(cls, error: OSError, message: str) -> MountError:
        """`message`, followed by the kernel's reason as Go's system errors are worded."""
        made = cls.verbatim(f"{message}: {reason(error)}")
        made.errno = error.errno or 0
        return made


def reason(error: OSError) -> str:
    """The text of `error`'s number, its first letter small unless it begins an abbreviation."""
    text = os.strerror(error.errno or 0)
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def mount_all(mounts: Sequence[Mount], target: str | os.PathLike[str]) -> None:
    """Mounts all of `mounts` in order, each at `target` or at its own target below it.

    Raises MountError, with nothing left mounted; Unimplemented for what this room cannot do (see `options.parse`).
    """
    root = os.fspath(target)
    with contextlib.ExitStack() as undo:
        for mount in mounts:
            with _resolved(root, mount.target) as (place, shown):
                _mount(mount, place, shown)
            undo.callback(_drop, shown)
        undo.pop_all()


def unmount(target: str | os.PathLike[str], *, detach: bool = False) -> None:
    """Takes the topmost mount off `target`. A target where nothing is mounted, or that is not there, is fine.

    A mount in use is tried again for a fifth of a second, then MountError is raised; with `detach` it leaves the
    tree at once and is freed when its last user goes.
    """
    path = os.fspath(target)
    flags = sc.UMOUNT_NOFOLLOW | (sc.MNT_DETACH if detach else 0)
    for tries_left in reversed(range(_BUSY_TRIES)):
        try:
            sc.umount2(path, flags)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            if error.errno != errno.EBUSY or not tries_left:
                raise MountError.of(error, f'failed to unmount target "{path}"') from error
            time.sleep(_BUSY_PAUSE)
        else:
            return


def unmount_all(target: str | os.PathLike[str]) -> None:
    """Detaches everything that is mounted at or below `target`, however it is stacked."""
    root = os.path.realpath(os.fsencode(target))
    # One pass takes the tops of all stacks off; a mount hidden under another one shows in the next pass only.
    while points := [entry.point for entry in mountinfo.read() if entry.lies_below(root)]:
        gone = 0
        for point in reversed(points):
            with contextlib.suppress(OSError):
                sc.umount2(point, sc.UMOUNT_NOFOLLOW | sc.MNT_DETACH)
                gone += 1
        if not gone:
            raise MountError(f"{len(points)} mounts at or below {os.fsdecode(root)} could not be unmounted")


@contextlib.contextmanager
def _resolved(root: str, inner: str) -> Iterator[tuple[str, str]]:
    """Where to mount, and how to call it in messages.

    `inner` is resolved within `root`, whose content may be an image's: its links lead nowhere outside, and the
    descriptor that was found is what is mounted on.
    """
    if not inner:
        yield root, root
        return
    shown = os.path.join(root, inner.lstrip("/"))
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            place = sc.openat2(base, inner, os.O_PATH, sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS)
        except OSError as error:
            raise MountError.of(error, f'mount target "{shown}"') from error
    finally:
        os.close(base)
    try:
        yield f"/proc/self/fd/{place}", os.readlink(f"/proc/self/fd/{place}")
    finally:
        os.close(place)


def _mount(mount: Mount, place: str, shown: str) -> None:
    if mount.type.startswith(("fuse.", "fuse3.")):
        raise Unimplemented(f'mounts by a helper program (type "{mount.type}")')
    options = parse(mount.options)
    data = ",".join(options.data)
    remount_of_bind = options.flags & sc.MS_REMOUNT and options.flags & sc.MS_BIND
    try:
        if options.loop:
            with loop.attached(mount.source, readonly=bool(options.flags & sc.MS_RDONLY)) as device:
                _first_call(replace(mount, source=device), place, options, data)
        elif not remount_of_bind or data:
            _first_call(mount, place, options, data)
    except OSError as error:
        raise _refused(mount, shown, options.flags, data, error) from error
    # A descriptor opened before still means what now lies underneath.
    top = shown if place.startswith("/proc/self/fd/") else place
    try:
        if options.propagation:
            sc.mount("", top, "", options.propagation, "")
        if options.flags & sc.MS_BIND and (options.flags | options.cleared) & _PER_MOUNT:
            # mount(2) ignores these flags when it makes a bind mount.
            _remount_bind(top, options)
    except OSError as error:
        _drop(shown)
        raise _refused(mount, shown, options.flags | sc.MS_REMOUNT, "", error) from error


def _first_call(mount: Mount, place: str, options: Options, data: str) -> None:
    if mount.type == "erofs" and not options.flags & sc.MS_REMOUNT:
        devices = [option.removeprefix("device=") for option in options.data if option.startswith("device=")]
        others = [option for option in options.data if not option.startswith("device=")]
        erofs.mount_image(mount.source, devices, place, flags=options.flags, data=others)
        return
    if mount.type == "overlay" and len(os.fsencode(data)) >= _PAGE - _RESERVE:
        overlay.mount_deep(mount.source, place, options.flags, options.data)
        return
    if len(os.fsencode(data)) >= _PAGE:
        raise Unknown("mount options is too long")
    sc.mount(mount.source, place, mount.type, options.flags, data)


def _remount_bind(place: str, options: Options) -> None:
    """Gives a fresh bind mount the flags of `options`, and leaves it those of its source that they do not name."""
    status = os.statvfs(place).f_flag
    present = sum(flag for bit, flag in _INHERITED.items() if status & bit)
    inherited = present & ~options.cleared
    if options.flags & _ATIME:
        inherited &= ~_ATIME
    wanted = (options.flags & _PER_MOUNT) | inherited
    if wanted != present:
        sc.mount("", place, "", wanted | sc.MS_BIND | sc.MS_REMOUNT, "")


def _refused(mount: Mount, target: str, flags: int, data: str, error: OSError) -> MountError:
    return MountError.of(
        error,
        f'mount source: "{mount.source}", target: "{target}", fstype: {mount.type}, flags: {flags}, '
        f'data: "{data}", err',
    )


def _drop(target: str) -> None:
    with contextlib.suppress(OSError):
        sc.umount2(target, sc.UMOUNT_NOFOLLOW | sc.MNT_DETACH)
