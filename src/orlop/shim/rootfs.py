"""A container's root file system: the mounts of a create request, made with plain system calls.

Mount targets inside the root are resolved in the root (`openat2`, RESOLVE_IN_ROOT), as the image shapes what is there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from orlop.errors import Unimplemented, Unknown
from orlop.shim import files, idmap

_libc = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 32, 4096, 16384
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_FLAGS: dict[str, tuple[int, bool]] = {
    "ro": (1, True),
    "rw": (1, False),
    "nosuid": (2, True),
    "suid": (2, False),
    "nodev": (4, True),
    "dev": (4, False),
    "noexec": (8, True),
    "exec": (8, False),
    "sync": (16, True),
    "dirsync": (128, True),
    "noatime": (1024, True),
    "atime": (1024, False),
    "nodiratime": (2048, True),
    "bind": (_MS_BIND, True),
    "rbind": (_MS_BIND | _MS_REC, True),
    "relatime": (1 << 21, True),
    "strictatime": (1 << 24, True),
    "defaults": (0, True),
}
_PROPAGATION = {"private": 1 << 18, "rprivate": 1 << 18 | _MS_REC, "slave": 1 << 19, "rslave": 1 << 19 | _MS_REC,
                "shared": 1 << 20, "rshared": 1 << 20 | _MS_REC}  # fmt: skip
_PAGE = 4096
_SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT, _SYS_OPENAT2 = 429, 430, 431, 432, 437
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_RESOLVE_IN_ROOT, _RESOLVE_NO_MAGICLINKS = 0x10, 0x02


class Mount(Protocol):
    """A mount as the wire has it."""

    @property
    def type(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def options(self) -> Sequence[str]: ...


def mount_all(mounts: Iterable[Mount], root: str) -> None:
    """Mounts `mounts` at `root`, one on the other; when one fails all are unmounted. Raises Unknown."""
    mounts = list(mounts)
    if mounts:
        os.makedirs(root, 0o711, exist_ok=True)
    try:
        for mount in mounts:
            try:
                with _target(root, mount.target) as target:
                    _mount(mount, target)
            except OSError as error:
                what = f"{mount.type} {mount.source} at {os.path.join(root, mount.target)} ({','.join(mount.options)})"
                why = (error.strerror or str(error)).lower()
                raise Unknown(f"failed to mount rootfs component: {what}: {why}") from error
    except BaseException:
        unmount_all(root)
        raise


def unmount_all(root: str) -> None:
    """Unmounts everything at and below `root`; what is busy is detached, so that this never waits. Raises OSError."""
    root = os.path.realpath(root)
    for point in reversed(_mount_points(root)):
        if _libc.umount2(os.fsencode(point), _UMOUNT_NOFOLLOW) != 0:
            _check(_libc.umount2(os.fsencode(point), _UMOUNT_NOFOLLOW | _MNT_DETACH), point)


def _mount_points(root: str) -> list[str]:
    lines = os.fsdecode(files.read("/proc/self/mountinfo")).split("\n")[:-1]
    points = [_unescape(line.split(" ", 5)[4]) for line in lines]
    return [point for point in points if point == root or point.startswith(root + "/")]


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def _mount(mount: Mount, target: str) -> None:
    uids, gids, options = idmap.split(mount.options)
    if not uids:
        _mount_plain(mount, target, options)
        return
    with idmap.user_namespace(uids, gids) as namespace:
        if mount.type == "overlay":
            idmap.mount_overlay(options, target, namespace, lambda mapped: _mount_plain(mount, target, mapped))
        else:
            _mount_plain(mount, target, options)
            idmap.remap(target, namespace)


def _mount_plain(mount: Mount, target: str, options: Sequence[str]) -> None:
    flags, propagation, data = 0, 0, []
    for option in options:
        if option in _FLAGS:
            flag, on = _FLAGS[option]
            flags = flags | flag if on else flags & ~flag
        elif option in _PROPAGATION:
            propagation |= _PROPAGATION[option]
        elif option == "loop":
            raise Unimplemented("loop mounts in a shim")
        else:
            data.append(option)
    if mount.type in ("bind", "rbind"):
        flags |= _MS_BIND | (_MS_REC if mount.type == "rbind" else 0)
    joined = ",".join(data)
    if len(joined) >= _PAGE:
        _mount_long(mount, target, flags, data)
        return
    _mount_call(mount.source, target, mount.type, flags, joined)
    remount = flags & ~_MS_REC
    if flags & _MS_BIND and remount != _MS_BIND:  # a bind takes other flags only once it is there
        _mount_call("", target, "", remount | _MS_REMOUNT, "")
    if propagation:
        _mount_call("", target, "", propagation, "")


def _mount_call(source: str, target: str, type: str, flags: int, options: str) -> None:
    _check(
        _libc.mount(
            os.fsencode(source or "none"),
            os.fsencode(target),
            os.fsencode(type) or None,
            ctypes.c_ulong(flags),
            os.fsencode(options) or None,
        ),
        target,
    )


def _mount_long(mount: Mount, target: str, flags: int, options: Sequence[str]) -> None:
    """A mount whose options exceed a page: each option goes by itself, and so does each lower directory."""
    with contextlib.ExitStack() as stack:
        context = _opened(stack, _SYS_FSOPEN, os.fsencode(mount.type), 1)
        settings: list[tuple[str, str]] = [("source", mount.source)]
        for option in options:
            key, _, value = option.partition("=")
            if key == "lowerdir":
                settings += [("lowerdir+", directory) for directory in value.split(":")]
            else:
                settings.append((key, value))
        for key, value in settings:
            command = _FSCONFIG_SET_STRING if value else _FSCONFIG_SET_FLAG
            argument = os.fsencode(value) if value else None
            _check(_libc.syscall(_SYS_FSCONFIG, context, command, os.fsencode(key), argument, 0), target)
        _check(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), target)
        # MOUNT_ATTR_RDONLY, _NOSUID, _NODEV and _NOEXEC are the bits of their MS_ namesakes
        tree = _opened(stack, _SYS_FSMOUNT, context, 1, flags & 0xF)
        here = -100  # AT_FDCWD
        _check(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", here, os.fsencode(target), 4), target)


def _opened(stack: contextlib.ExitStack, *arguments: object) -> int:
    descriptor = int(_libc.syscall(*arguments))
    _check(min(descriptor, 0), "")
    stack.callback(os.close, descriptor)
    return descriptor


@contextlib.contextmanager
def _target(root: str, inside: str) -> Iterator[str]:
    """A path to `inside` of `root` that no symbolic link can lead out."""
    if not inside or inside == "/":
        yield root
        return
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
        descriptor = _libc.syscall(_SYS_OPENAT2, directory, os.fsencode(inside), how, len(how))
        _check(min(descriptor, 0), inside)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    finally:
        os.close(directory)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
