"""Mount options as fstab(5) writes them, parsed for mount(2). What is no flag is data for the file system."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orlop.errors import Unimplemented, Unknown
from orlop.mounts import syscalls as sc

PROPAGATION = sc.MS_SHARED | sc.MS_PRIVATE | sc.MS_SLAVE | sc.MS_UNBINDABLE
_ATIME = sc.MS_NOATIME | sc.MS_RELATIME | sc.MS_STRICTATIME

_SET = {
    "bind": sc.MS_BIND,
    "rbind": sc.MS_BIND | sc.MS_REC,
    "ro": sc.MS_RDONLY,
    "nosuid": sc.MS_NOSUID,
    "nodev": sc.MS_NODEV,
    "noexec": sc.MS_NOEXEC,
    "sync": sc.MS_SYNCHRONOUS,
    "dirsync": sc.MS_DIRSYNC,
    "mand": sc.MS_MANDLOCK,
    "nosymfollow": sc.MS_NOSYMFOLLOW,
    "noatime": sc.MS_NOATIME,
    "nodiratime": sc.MS_NODIRATIME,
    "relatime": sc.MS_RELATIME,
    "strictatime": sc.MS_STRICTATIME,
    "lazytime": sc.MS_LAZYTIME,
    "silent": sc.MS_SILENT,
    "remount": sc.MS_REMOUNT,
    "shared": sc.MS_SHARED,
    "rshared": sc.MS_SHARED | sc.MS_REC,
    "private": sc.MS_PRIVATE,
    "rprivate": sc.MS_PRIVATE | sc.MS_REC,
    "slave": sc.MS_SLAVE,
    "rslave": sc.MS_SLAVE | sc.MS_REC,
    "unbindable": sc.MS_UNBINDABLE,
    "runbindable": sc.MS_UNBINDABLE | sc.MS_REC,
}
_CLEAR = {
    "rw": sc.MS_RDONLY,
    "suid": sc.MS_NOSUID,
    "dev": sc.MS_NODEV,
    "exec": sc.MS_NOEXEC,
    "async": sc.MS_SYNCHRONOUS,
    "nomand": sc.MS_MANDLOCK,
    "symfollow": sc.MS_NOSYMFOLLOW,
    "atime": sc.MS_NOATIME,
    "diratime": sc.MS_NODIRATIME,
    "norelatime": sc.MS_RELATIME,
    "nostrictatime": sc.MS_STRICTATIME,
    "nolazytime": sc.MS_LAZYTIME,
    "loud": sc.MS_SILENT,
}

_ATTRIBUTES = {
    sc.MS_RDONLY: sc.MOUNT_ATTR_RDONLY,
    sc.MS_NOSUID: sc.MOUNT_ATTR_NOSUID,
    sc.MS_NODEV: sc.MOUNT_ATTR_NODEV,
    sc.MS_NOEXEC: sc.MOUNT_ATTR_NOEXEC,
    sc.MS_NOATIME: sc.MOUNT_ATTR_NOATIME,
    sc.MS_STRICTATIME: sc.MOUNT_ATTR_STRICTATIME,
    sc.MS_NODIRATIME: sc.MOUNT_ATTR_NODIRATIME,
    sc.MS_NOSYMFOLLOW: sc.MOUNT_ATTR_NOSYMFOLLOW,
}
"""Of a mount that fsmount(2) makes, by the flags of mount(2)."""


@dataclass(frozen=True, slots=True)
class Options:
    """`flags` are those of the mount itself, `propagation` those of a second call (0: none)."""

    flags: int
    cleared: int
    """What was named as off, which a bind mount would otherwise inherit from its source."""
    propagation: int
    data: tuple[str, ...]
    loop: bool = False
    """The source is a file that a loop device makes a block device."""


def parse(options: Iterable[str]) -> Options:
    """What `options` say; where two disagree, the later holds.

    Raises Unimplemented for id-mapped mounts, Unknown for an option of containerd's mount manager.
    """
    flags = cleared = propagation = 0
    loop = False
    data: list[str] = []
    for option in options:
        if option in _SET:
            bits = _SET[option]
            if bits & PROPAGATION:
                propagation = bits
                continue
            if bits & _ATIME:
                flags &= ~_ATIME
            flags |= bits
            cleared &= ~bits
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
            cleared |= _CLEAR[option]
        elif option.startswith("X-containerd."):
            raise Unknown(f'internal mount option "{option}" was not consumed by the mount manager')
        elif option.startswith(("uidmap=", "gidmap=")):
            raise Unimplemented(f'id-mapped mounts (option "{option}")')
        elif option == "loop":
            loop = True
        elif option and option != "defaults":
            data.append(option)
    return Options(flags, cleared, propagation, tuple(data), loop)


def attributes(flags: int) -> int:
    """The attributes by which fsmount(2) knows the `flags` of mount(2); others are the file system's own."""
    return sum(attribute for flag, attribute in _ATTRIBUTES.items() if flags & flag)


def split_lowers(value: str) -> tuple[list[str], list[str]]:
    """The directories of overlay's `lowerdir=` value: the layers, nearest first, and the data-only ones behind `::`.

    A backslash takes the next character as it is (Documentation/filesystems/overlayfs.rst, "Multiple lower layers").
    """
    names: list[str] = [""]
    characters = iter(value)
    for character in characters:
        if character == "\\":
            names[-1] += next(characters, "\\")
        elif character == ":":
            names.append("")
        else:
            names[-1] += character
    if "" not in names:
        return names, []
    gap = names.index("")
    return names[:gap], [name for name in names[gap:] if name]


def escape_lower(path: str) -> str:
    """`path` as one directory of a `lowerdir=` value."""
    return path.replace("\\", "\\\\").replace(":", "\\:")


def read_only(options: Sequence[str], fstype: str) -> tuple[str, ...]:
    """`options` for a mount of the same content that nobody can write.

    An overlay's upper directory becomes its nearest lower one, so that no upper directory is mounted twice. Ids are
    not mapped: who only looks at the files need not.
    """
    options = [option for option in options if not option.startswith(("uidmap=", "gidmap="))]
    if fstype.rpartition("/")[2] != "overlay":
        return (*(option for option in options if option not in {"ro", "rw"}), "ro")
    upper = next((option.partition("=")[2] for option in options if option.startswith("upperdir=")), "")
    kept = []
    for option in options:
        name, _, value = option.partition("=")
        if name in {"upperdir", "workdir", "volatile"}:
            continue
        kept.append(f"lowerdir={escape_lower(upper)}:{value}" if name == "lowerdir" and upper else option)
    return tuple(kept)
