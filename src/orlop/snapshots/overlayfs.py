"""The overlayfs snapshotter: each snapshot holds what it changes, and the kernel lays them over each other."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from orlop.core.mount import Mount
from orlop.core.snapshot import Kind, SnapshotInfo
from orlop.errors import Unknown
from orlop.snapshots import idmap
from orlop.snapshots.directories import DirectorySnapshotter
from orlop.snapshots.storage import Record

UPPERDIR_LABEL = "containerd.io/snapshot/overlay.upperdir"

_INDEX_PARAMETER = Path("/sys/module/overlay/parameters/index")
_WHOLE_ID_SPACE = ["0", "0", "4294967295"]
_DT_UNKNOWN = 0


class OverlaySnapshotter(DirectorySnapshotter):
    """Snapshots below `root`. Layout: `snapshots/<id>/fs`, and `work` where the snapshot is active.

    `mount_options` are added to every overlay. Raises Unknown if the file system of `root` has no d_type.
    """

    def __init__(
        self,
        root: Path,
        *,
        mount_options: Sequence[str] = (),
        upperdir_label: bool = False,
        sync_remove: bool = False,
    ) -> None:
        super().__init__(root, sync_remove=sync_remove)
        if not supports_d_type(root):
            raise Unknown(
                f"{root} does not support d_type. If the backing filesystem is xfs, please reformat with ftype=1 "
                "to enable d_type support"
            )
        self._upperdir_label = upperdir_label
        self._options = (*mount_options, *_kernel_options(mount_options))

    def _fill(self, directory: str, kind: Kind, labels: Mapping[str, str], parent: int | None) -> None:
        content = os.path.join(directory, "fs")
        _make_directory(content, 0o755)
        if kind is Kind.ACTIVE:
            _make_directory(os.path.join(directory, "work"), 0o711)
        owner = idmap.root_owner(labels)
        if owner is None and parent is not None:
            status = os.stat(self._content(parent))
            owner = status.st_uid, status.st_gid
        if owner is not None:
            os.chown(content, *owner, follow_symlinks=False)

    def _mounts_of(self, record: Record) -> list[Mount]:
        lowers = [self._content(parent) for parent in record.parents]
        is_view = record.info.kind is Kind.VIEW
        if not lowers:
            return [Mount("bind", self._content(record.id), ("ro" if is_view else "rw", "rbind"))]
        if is_view and len(lowers) == 1:
            return [Mount("bind", lowers[0], ("ro", "rbind"))]
        upper: tuple[str, ...] = ()
        if not is_view:
            work = os.path.join(self._directory(record.id), "work")
            upper = (f"workdir={work}", f"upperdir={self._content(record.id)}")
        return [Mount("overlay", "overlay", (*upper, f"lowerdir={':'.join(lowers)}", *self._options))]

    def _content(self, id: int) -> str:
        return os.path.join(self._directory(id), "fs")

    def _shown(self, record: Record) -> SnapshotInfo:
        if not self._upperdir_label:
            return record.info
        labels = {**record.info.labels, UPPERDIR_LABEL: self._content(record.id)}
        return dataclasses.replace(record.info, labels=labels)


def in_user_namespace() -> bool:
    """Whether this process's root is not the host's."""
    with open("/proc/self/uid_map") as file:
        return file.read().split() != _WHOLE_ID_SPACE


def _kernel_options(configured: Sequence[str]) -> list[str]:
    names = {option.partition("=")[0] for option in configured}
    options = []
    if "userxattr" not in names and in_user_namespace():
        options.append("userxattr")
    if "index" not in names and _INDEX_PARAMETER.exists():
        options.append("index=off")
    return options


def _make_directory(path: str, mode: int) -> None:
    os.mkdir(path, mode)
    os.chmod(path, mode)


class _DirectoryEntry(ctypes.Structure):
    _fields_ = (
        ("inode", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("length", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


def supports_d_type(directory: Path) -> bool:
    """Whether the file system of `directory`, which has at least one entry, tells types when it is listed."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    stream = libc.opendir(os.fsencode(directory))
    if not stream:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(directory))
    try:
        while address := libc.readdir(ctypes.c_void_p(stream)):
            entry = ctypes.cast(address, ctypes.POINTER(_DirectoryEntry)).contents
            if entry.type == _DT_UNKNOWN and entry.name not in (b".", b".."):
                return False
        return True
    finally:
        libc.closedir(ctypes.c_void_p(stream))
