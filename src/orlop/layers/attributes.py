"""What a kernel makes of an entry's times and extended attributes when they are set on a file.

For those who do not set them but record what would be: texts and conditions are those of setxattr(2), chmod(2) and of
capabilities(7) and acl(5).
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Mapping
from struct import Struct

from orlop.erofs.layout import Unrepresentable
from orlop.layers.tar import Entry

CAPABILITY = b"security.capability"
ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

_NAME_LIMIT = 255
_VALUE_LIMIT = 1 << 16
_LATEST = (1 << 63) - 1
_NONE: Mapping[bytes, bytes] = {}

_CAPABILITY_SIZES = {0x02000000: 20, 0x03000000: 24}
_REVISION_MASK = 0xFF000000

_ACL = Struct("<HHI")
_ACL_VERSION = (2).to_bytes(4, "little")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

_log = logging.getLogger(__name__)


def modified(entry: Entry) -> int:
    """Nanoseconds since 1970; a time that the kernel's calls do not take becomes 1970."""
    return entry.mtime if 0 <= entry.mtime <= _LATEST else 0


def xattrs(entry: Entry, kind: int) -> Mapping[bytes, bytes]:
    """The attributes that a file of type `kind` gets of `entry`. Raises OSError where setting them would.

    Raises Unrepresentable for those whose effect is not known here.
    """
    if not entry.xattrs:
        return _NONE
    taken: dict[bytes, bytes] = {}
    for name, value in entry.xattrs.items():
        if _is_taken(entry, name, value, kind):
            taken[name] = value
    return after_chmod(taken, entry.mode) if kind != stat.S_IFLNK else taken


def _is_taken(entry: Entry, name: bytes, value: bytes, kind: int) -> bool:
    if name.startswith(b"trusted."):
        return _ignored(entry, name, "admin attributes are not taken from archives")
    if not 0 < len(name) <= _NAME_LIMIT:
        raise _refused(errno.ERANGE, name)
    if len(value) > _VALUE_LIMIT:
        raise _refused(errno.E2BIG, name)
    if name in (ACCESS, DEFAULT):
        return _is_acl_taken(entry, name, value, kind)
    if not name.startswith((b"user.", b"security.")):
        return _ignored(entry, name, os.strerror(errno.ENOTSUP))
    if name.startswith(b"user.") and kind not in (stat.S_IFREG, stat.S_IFDIR):
        return _ignored(entry, name, os.strerror(errno.EPERM))
    if name.endswith(b".") and name.count(b".") == 1:
        raise _refused(errno.EINVAL, name)
    if name == CAPABILITY and value:
        revision = int.from_bytes(value[:4], "little") & _REVISION_MASK
        if len(value) != _CAPABILITY_SIZES.get(revision):
            raise _refused(errno.EINVAL, name)
    return True


def _is_acl_taken(entry: Entry, name: bytes, value: bytes, kind: int) -> bool:
    if kind == stat.S_IFLNK:
        return _ignored(entry, name, os.strerror(errno.ENOTSUP))
    if name == DEFAULT:
        raise Unrepresentable("default access control list, which files made below it inherit")
    if value[:4] != _ACL_VERSION or not _is_extended_acl(value[4:]):
        raise Unrepresentable("access control list in no canonical form")
    return True


def _is_extended_acl(entries: bytes) -> bool:
    """Whether the kernel keeps it as it is: in order, each part once, and more in it than a mode says."""
    if len(entries) % _ACL.size:
        return False
    parts = list(_ACL.iter_unpack(entries))
    tags = [tag for tag, _, _ in parts]
    keys = [(tag, id if tag in (_USER, _GROUP) else 0) for tag, _, id in parts]
    return (
        keys == sorted(set(keys))
        and {_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER} <= set(tags)
        and set(tags) <= {_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER}
        and all(permissions <= 7 for _, permissions, _ in parts)
        and all((id != 0xFFFFFFFF) == (tag in (_USER, _GROUP)) for tag, _, id in parts)
    )


def after_chmod(found: Mapping[bytes, bytes], mode: int) -> dict[bytes, bytes]:
    """`found` after the file's mode has been set: the owner's, the mask's and others' rights of a list follow it."""
    acl = found.get(ACCESS)
    if acl is None:
        return dict(found)
    rights = {_USER_OBJ: mode >> 6 & 7, _MASK: mode >> 3 & 7, _OTHER: mode & 7}
    parts = (_ACL.pack(tag, rights.get(tag, kept), id) for tag, kept, id in _ACL.iter_unpack(acl[4:]))
    return {**found, ACCESS: acl[:4] + b"".join(parts)}


def _ignored(entry: Entry, name: bytes, why: str) -> bool:
    _log.warning("ignored xattr %r of %r in archive: %s", name, entry.name, why)
    return False


def _refused(number: int, name: bytes) -> OSError:
    return OSError(number, os.strerror(number), f"setxattr {name.decode('utf-8', 'backslashreplace')}")
