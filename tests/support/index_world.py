"""Layers in both forms, a directory and a mounted index, and what can be seen of a tree."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from orlop.layers import apply, tar, write
from orlop.layers.index import LayerIndex, index_layer
from orlop.layers.stream import ByteStream
from orlop.layers.tar import Entry, TarReader
from orlop.mounts import syscalls

SECOND = 1_000_000_000
PROGRAMS = os.environ.get("EROFS_UTILS", "")
"""A directory with fsck.erofs and dump.erofs newer than the installed ones."""


def entry(name: bytes, type: bytes = tar.REGULAR, data: bytes = b"", **fields: object) -> bytes:
    """One member of an archive, its data included."""
    values: dict[str, object] = {"mode": 0o644, "uid": 0, "gid": 0, "mtime": 1_500_000_000 * SECOND, **fields}
    made = Entry(name=name, type=type, size=len(data), data_offset=0, stored=len(data), **values)  # type: ignore[arg-type]
    return write.head(made) + data + write.padding(len(data))


def archive(*members: bytes) -> bytes:
    return b"".join(members) + write.END


def index(data: Iterable[bytes], place: Path) -> LayerIndex:
    """Makes `place`.tar and `place`.erofs."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    tar_fd = os.open(f"{place}.tar", flags)
    image_fd = os.open(f"{place}.erofs", flags)
    try:
        return index_layer(data, tar_fd, image_fd)
    finally:
        os.close(tar_fd)
        os.close(image_fd)


def unpack(data: bytes, root: Path) -> None:
    """Makes the directory form that an overlay's upper directory has."""
    root.mkdir()
    apply.apply(TarReader(ByteStream([data])), str(root), apply.Options(overlay=True))


@contextlib.contextmanager
def mounted(image: Path | str, devices: Sequence[Path | str]) -> Iterator[Path]:
    """A mount of `image` over files, as long as the `with` lasts."""
    with tempfile.TemporaryDirectory(prefix="orlop-index-") as target:
        fs = syscalls.fsopen("erofs")
        try:
            syscalls.fsconfig(fs, syscalls.FSCONFIG_SET_STRING, "source", str(image))
            for device in devices:
                syscalls.fsconfig(fs, syscalls.FSCONFIG_SET_STRING, "device", str(device))
            syscalls.fsconfig(fs, syscalls.FSCONFIG_CMD_CREATE)
            mount = syscalls.fsmount(fs, syscalls.MOUNT_ATTR_RDONLY)
        finally:
            os.close(fs)
        try:
            syscalls.move_mount(mount, target)
        finally:
            os.close(mount)
        try:
            yield Path(target)
        finally:
            syscalls.umount2(target, 0)


@functools.cache
def mounts_files() -> str:
    """Why this kernel does not mount an index, or nothing."""
    if os.geteuid():
        return "needs root"
    with tempfile.TemporaryDirectory(prefix="orlop-index-") as place:
        index([archive(entry(b"f", data=b"x"))], Path(place, "probe"))
        try:
            with mounted(f"{place}/probe.erofs", [f"{place}/probe.tar"]):
                return ""
        except OSError as error:
            return f"this kernel does not mount EROFS from files: {error.strerror}"


@functools.cache
def checker() -> str:
    """The path of an fsck.erofs that knows blocks of 512 bytes, or nothing."""
    program = shutil.which("fsck.erofs", path=f"{PROGRAMS}:{os.environ['PATH']}")
    if program is None:
        return ""
    with tempfile.TemporaryDirectory(prefix="orlop-index-") as place:
        index([archive()], Path(place, "probe"))
        known = subprocess.run([program, f"--device={place}/probe.tar", f"{place}/probe.erofs"], capture_output=True)
        return program if known.returncode == 0 else ""


def check(image: Path | str, devices: Sequence[Path | str]) -> None:
    """Has fsck.erofs look at all of `image`, where there is one that can."""
    if program := checker():
        found = subprocess.run(
            [program, *(f"--device={one}" for one in devices), str(image)], capture_output=True, text=True
        )
        assert found.returncode == 0, found.stdout + found.stderr
        assert "<E>" not in found.stderr, found.stderr


def seen(root: Path, *, undated: frozenset[str] = frozenset()) -> dict[str, tuple[object, ...]]:
    """All that a program can see below `root`, by path; not the times of whiteouts, nor of what is in `undated`."""
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, list[str]] = {}
    pending = [b""]
    base = os.fsencode(root)
    while pending:
        path = pending.pop()
        here = base + b"/" + path if path else base
        about = os.lstat(here)
        kind = stat.S_IFMT(about.st_mode)
        shown = path.decode("utf-8", "backslashreplace")
        dated = path and shown not in undated and not (kind == stat.S_IFCHR and about.st_rdev == 0)
        content: object = None
        if kind == stat.S_IFREG:
            content = (about.st_size, _digest(here))
        elif kind == stat.S_IFLNK:
            content = os.readlink(here)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            content = about.st_rdev
        elif kind == stat.S_IFDIR:
            names = os.listdir(here)
            content = sorted(names)
            pending.extend(path + b"/" + name if path else name for name in names)
        if kind != stat.S_IFDIR:
            inodes.setdefault(about.st_ino, []).append(shown)
        found[shown] = (
            oct(about.st_mode) if path else kind,
            (about.st_uid, about.st_gid) if path else None,
            about.st_mtime_ns if dated else None,
            about.st_nlink,
            content,
            sorted((name, _xattr(here, name)) for name in os.listxattr(here, follow_symlinks=False)),
        )
    found["/linked"] = tuple(sorted(tuple(sorted(names)) for names in inodes.values() if len(names) > 1))
    return found


def _xattr(path: bytes, name: str) -> bytes:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:  # a capability that the kernel cannot read
        return b"errno %d" % (error.errno or 0)


def _digest(path: bytes) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
