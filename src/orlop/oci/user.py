"""Who a container runs as: the `USER` of an image, read against the image's own `/etc/passwd` and `/etc/group`.

The image is not trusted. Its files are opened beneath its root without leaving it, must be regular, and are read to a
limit. Text that looks like a number is one: it is never tried as a name, so that a line of the image's passwd cannot
turn an id out of range into root.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orlop.errors import InvalidArgument, NotFound

MAX_ID = (1 << 31) - 1
MAX_FILE = 10 << 20
"""Bytes of an image's passwd or group file."""
_MAX_GROUPS = 65536
_NUMBER = re.compile(r"[0-9]+", re.ASCII)
_SYS_OPENAT2 = 437
_IN_ROOT = 0x10 | 0x02  # RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_HOW = struct.Struct("=QQQ")


@dataclass(frozen=True, slots=True)
class User:
    """Ids inside the container. `groups` has the primary group too, so that a file that denies it stays denied."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    uid: int
    gid: int
    home: str


Read = Callable[[str], bytes]
"""Gives a file of the image by its path; empty where there is none."""


def resolve(text: str, rootfs: str | os.PathLike[str]) -> User:
    """The user that `text` (`name`, `uid`, `name:group`, `uid:gid` ...) is in the image at `rootfs`.

    Raises InvalidArgument for ids out of range, NotFound for names that the image does not have.
    """
    return resolve_with(text, lambda path: read_within(rootfs, path))


def resolve_with(text: str, read: Read) -> User:
    """As `resolve`, with the image's files given by `read`."""
    user, colon, group = text.partition(":")
    if (text and not user) or (colon and not group) or ":" in group:
        raise InvalidArgument(f'user "{text}": neither half of USER may be empty')
    uid = _id(user, "uid") if user else 0
    entries = list(_passwd(read("etc/passwd")))
    if uid is None:
        entry = next((entry for entry in entries if entry.name == user), None)
        if entry is None:
            raise NotFound(f'user "{user}" in /etc/passwd of the image')
    else:
        entry = next((entry for entry in entries if entry.uid == uid), None)
        entry = entry or _Entry("", uid, 0, "/")
    named = list(_groups(read("etc/group")))
    gid = entry.gid
    if group:
        number = _id(group, "gid")
        gid = number if number is not None else _gid_of(group, named)
        groups = {gid}
    else:
        groups = {gid} | {number for _, number, members in named if entry.name and entry.name in members}
    return User(entry.uid, gid, tuple(sorted(groups)), entry.home or "/")


def with_groups(who: User, groups: Sequence[str], rootfs: str | os.PathLike[str]) -> User:
    """`who` with further `groups`, by number or by their name in the image. Raises InvalidArgument, NotFound."""
    if not groups:
        return who
    named = list(_groups(read_within(rootfs, "etc/group")))
    numbers = [_id(text, "gid") for text in groups]
    added = {_gid_of(text, named) if number is None else number for text, number in zip(groups, numbers, strict=True)}
    return dataclasses.replace(who, groups=tuple(sorted({*who.groups, *added})))


def read_within(rootfs: str | os.PathLike[str], path: str, limit: int = MAX_FILE) -> bytes:
    """The regular file `path` beneath `rootfs`; links are followed inside that root only. Empty if there is none."""
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        place = _open_in_root(root, path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise InvalidArgument(f"/{path} of the image: {os.strerror(error.errno or 0).lower()}") from None
    finally:
        os.close(root)
    try:
        # A device or FIFO is never opened, only looked at.
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise InvalidArgument(f"/{path} of the image is no regular file")
        with open(f"/proc/self/fd/{place}", "rb") as file:
            data = file.read(limit + 1)
    finally:
        os.close(place)
    if len(data) > limit:
        raise InvalidArgument(f"/{path} of the image is longer than {limit} bytes")
    return data


def _open_in_root(root: int, path: str, flags: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    how = _HOW.pack(flags, 0, _IN_ROOT)
    descriptor = int(libc.syscall(_SYS_OPENAT2, root, os.fsencode(path), how, len(how)))
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return descriptor


def _id(text: str, what: str) -> int | None:
    """A number within range; None if `text` is a name. What merely resembles a number is refused."""
    if _NUMBER.fullmatch(text):
        if len(text.lstrip("0")) > 10 or int(text) > MAX_ID:
            raise InvalidArgument(f"{what} {text} is out of range: it must be 0 to {MAX_ID}")
        return int(text)
    if _resembles_number(text):
        raise InvalidArgument(f'{what} "{text}" is no decimal number')
    return None


def _resembles_number(text: str) -> bool:
    stripped = text.strip().lstrip("+-").replace("_", "").strip()
    if not stripped or text != text.strip():
        return True
    if stripped.isnumeric():
        return True
    try:
        int(stripped, 0)
    except ValueError:
        return bool(re.fullmatch(r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?", stripped, re.ASCII))
    return True


def _lines(data: bytes) -> Iterator[list[str]]:
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        if line and not line.startswith("#"):
            yield line.rstrip("\r").split(":")


def _number(text: str) -> int | None:
    """An id of a file: None where it is none, so that the line does not count."""
    if not _NUMBER.fullmatch(text) or len(text) > 10 or int(text) > MAX_ID:
        return None
    return int(text)


def _passwd(data: bytes) -> Iterator[_Entry]:
    for fields in _lines(data):
        if len(fields) < 4 or not fields[0]:
            continue
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is not None and gid is not None:
            yield _Entry(fields[0], uid, gid, fields[5] if len(fields) > 5 else "/")


def _groups(data: bytes) -> Iterator[tuple[str, int, frozenset[str]]]:
    for count, fields in enumerate(_lines(data)):
        if count >= _MAX_GROUPS:
            raise InvalidArgument(f"/etc/group of the image has more than {_MAX_GROUPS} lines")
        number = _number(fields[2]) if len(fields) >= 3 else None
        if number is not None and fields[0]:
            yield fields[0], number, frozenset(fields[3].split(",") if len(fields) > 3 else ())


def _gid_of(name: str, groups: list[tuple[str, int, frozenset[str]]]) -> int:
    for found, number, _ in groups:
        if found == name:
            return number
    raise NotFound(f'group "{name}" in /etc/group of the image')


def home_of(rootfs: Path, uid: int) -> str:
    """The home directory of `uid` in the image; `/` where it names none."""
    return next((entry.home or "/" for entry in _passwd(read_within(rootfs, "etc/passwd")) if entry.uid == uid), "/")
