"""Id-mapped mounts (mount_setattr(2), MOUNT_ATTR_IDMAP): files on disk that belong to other users in a container.

A snapshotter asks for them by the options `uidmap=` and `gidmap=`, `<container>:<host>:<size>[,...]`. Of an overlay the
lower directories are mapped; its upper directory has the container's own ids already.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from orlop import faults
from orlop.errors import InvalidArgument, Unknown

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWUSER = 0x10000000
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _AT_EMPTY_PATH, _AT_FDCWD = 1, os.O_CLOEXEC, 0x1000, -100
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_IDMAP = 1, 0x00100000
_MS_PRIVATE = 1 << 18
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_EXTENT = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})", re.ASCII)


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("namespace", ctypes.c_uint64),
    )


def split(options: Sequence[str]) -> tuple[str, str, list[str]]:
    """The mappings of users and of groups that `options` ask for (both empty: none), and the other options.

    Raises InvalidArgument if there is one without the other, or one that is none.
    """
    found = {"uidmap": "", "gidmap": ""}
    others = []
    for option in options:
        key, equals, value = option.partition("=")
        if equals and key in found:
            found[key] = value
        else:
            others.append(option)
    uids, gids = found["uidmap"], found["gidmap"]
    if bool(uids) != bool(gids):
        raise InvalidArgument("an id-mapped mount needs both uidmap= and gidmap=")
    for text in (uids, gids):
        if text and not all(_EXTENT.fullmatch(part) for part in text.split(",")):
            raise InvalidArgument(f'id mapping "{text}" is not of the form container:host:size[,...]')
    return uids, gids, others


@contextlib.contextmanager
def user_namespace(uids: str, gids: str) -> Iterator[int]:
    """A descriptor of a user namespace with these mappings. Raises Unknown if the kernel does not make it.

    A child that does nothing else makes the namespace and ends with the context; whoever reaps our children reaps it.
    """
    ready, tell = os.pipe2(os.O_CLOEXEC)
    hold, release = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            os.close(release)
            os.write(tell, b"1" if _libc.unshare(_CLONE_NEWUSER) == 0 else b"0")
            os.read(hold, 1)
        finally:
            os._exit(0)
    try:
        os.close(tell)
        if os.read(ready, 1) != b"1":
            raise Unknown("id-mapped mount: this kernel does not let us make a user namespace")
        for name, text in (("uid_map", uids), ("gid_map", gids)):
            with open(f"/proc/{child}/{name}", "w", encoding="ascii") as file:
                file.write("\n".join(part.replace(":", " ") for part in text.split(",")) + "\n")
        namespace = os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Unknown(f"id-mapped mount: mapping {uids} and {gids}: {(error.strerror or '').lower()}") from error
    finally:
        for descriptor in (ready, hold, release):
            os.close(descriptor)
    try:
        yield namespace
    finally:
        os.close(namespace)


def remap(target: str, namespace: int) -> None:
    """Replaces what is mounted at `target` by the same with mapped ids. Raises OSError."""
    tree = _clone(target, namespace, 0)
    try:
        _unmount(target)
        _attach(tree, target)
    finally:
        os.close(tree)


def mount_overlay(options: Sequence[str], target: str, namespace: int, mount: Callable[[Sequence[str]], None]) -> None:
    """Has `mount` make an overlay at `target` whose lower directories are mapped. Raises OSError.

    The mapped lower directories need places in the tree while the overlay is made: a file system in memory at
    `target`. Nothing of it stays, and what a crash would leave goes with all that is mounted at `target`.
    """
    lowers = next((value for key, _, value in (o.partition("=") for o in options) if key == "lowerdir"), "")
    with contextlib.ExitStack() as undo:
        _check(_libc.mount(b"orlop", os.fsencode(target), b"tmpfs", ctypes.c_ulong(0), b"mode=0700,size=64k"), target)
        undo.callback(_unmount, target)
        _check(_libc.mount(None, os.fsencode(target), None, ctypes.c_ulong(_MS_PRIVATE), None), target)
        places = []
        for number, lower in enumerate(_directories(lowers)):
            place = os.path.join(target, str(number))
            os.mkdir(place, 0o700)
            tree = _clone(lower, namespace, _MOUNT_ATTR_RDONLY)
            undo.callback(os.close, tree)
            _attach(tree, place)
            undo.callback(_unmount, place)
            places.append(f"/proc/self/fd/{tree}")
        mapped = f"lowerdir={':'.join(places)}"
        mount([mapped if option.startswith("lowerdir=") else option for option in options])
        undo.callback(_unmount, target)
        overlay = _opened(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(target), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC)
        undo.callback(os.close, overlay)
        kept = os.dup(overlay)
    try:
        _attach(kept, target)
    finally:
        os.close(kept)


def _directories(lowers: str) -> list[str]:
    """The parts of an overlay's `lowerdir`; a backslash takes the next character as it is."""
    names = [""]
    characters = iter(lowers)
    for character in characters:
        if character == "\\":
            names[-1] += next(characters, "\\")
        elif character == ":":
            names.append("")
        else:
            names[-1] += character
    if "" in names:
        raise InvalidArgument(f'lower directories "{lowers}": data-only ones cannot be mounted with mapped ids')
    return names


def _clone(path: str, namespace: int, attributes: int) -> int:
    """A copy of the mount at `path`, attached nowhere, with mapped ids."""
    tree = _opened(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC)
    try:
        wanted = _Attributes(_MOUNT_ATTR_IDMAP | attributes, 0, _MS_PRIVATE, namespace)
        size = ctypes.sizeof(wanted)
        _check(_libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(wanted), size), path)
    except BaseException:
        os.close(tree)
        raise
    return tree


def _attach(tree: int, target: str) -> None:
    _check(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), 4), target)


def _unmount(target: str) -> None:
    _libc.umount2(os.fsencode(target), _UMOUNT_NOFOLLOW | _MNT_DETACH)


def _opened(*arguments: object) -> int:
    descriptor = int(_libc.syscall(*arguments))
    _check(min(descriptor, 0), "")
    return descriptor


def probe(directory: str) -> None:
    """Makes and unmakes an overlay with a mapped lower directory below the fresh `directory`. Raises if that fails."""
    names = ("lower", "upper", "work", "merged")
    lower, upper, work, merged = (os.path.join(directory, name) for name in names)
    for path in (lower, upper, work, merged):
        os.mkdir(path, 0o700)
    options = [f"workdir={work}", f"upperdir={upper}", f"lowerdir={lower}"]

    def mount(mapped: Sequence[str]) -> None:
        data = os.fsencode(",".join(mapped))
        _check(_libc.mount(b"overlay", os.fsencode(merged), b"overlay", ctypes.c_ulong(0), data), merged)

    with user_namespace("0:666:1", "0:666:1") as namespace:
        mount_overlay(options, merged, namespace, mount)
    try:
        faults.point("shim.idmap.tried")
        if os.stat(merged).st_uid != os.stat(upper).st_uid:
            raise Unknown("an overlay with mapped ids shows its upper directory with another owner")
    finally:
        _unmount(merged)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


if __name__ == "__main__":
    probe(sys.argv[1])
