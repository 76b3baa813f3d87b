"""Whether this kernel mounts an EROFS image from a file, and overlays on that, below a certain directory.

Linux 6.12 can (CONFIG_EROFS_FS_BACKED_BY_FILE), on file systems that read through the page cache, and where they are
not themselves stacked too deep. Nothing but a trial tells all of this.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orlop.mounts import erofs
from orlop.mounts import syscalls as sc
from orlop.mounts.mount import reason, unmount_all
from orlop.snapshots import trees, verity

_BLOCK = 512
_SUPERBLOCK = 1024
_DEVICES = _SUPERBLOCK + 128
_PREFIX = "probe-"


def refusal(root: Path) -> str:
    """Why layers below `root` cannot be mounted from indexes; empty if they can."""
    with _trial_directory(root) as directory:
        image, device, target = (os.path.join(directory, name) for name in ("index", "tar", "mount"))
        Path(image).write_bytes(_smallest_image())
        Path(device).write_bytes(bytes(_BLOCK))
        places = {name: os.path.join(directory, name) for name in ("upper", "work", "merged")}
        for path in (target, *places.values()):
            os.mkdir(path, 0o700)
        try:
            erofs.mount_image(image, (device,), target)
        except OSError as error:
            return f"the kernel mounts no EROFS image from a file here: {reason(error)}"
        options = f"lowerdir={target},upperdir={places['upper']},workdir={places['work']}"
        try:
            sc.mount("overlay", places["merged"], "overlay", 0, options)
        except OSError as error:
            return f"the kernel lays no overlay over an EROFS image here: {reason(error)}"
    return ""


def has_verity(root: Path) -> bool:
    """Whether files below `root` can be sealed."""
    with _trial_directory(root) as directory:
        file = Path(directory, "file")
        file.write_bytes(b"x")
        return verity.enable(file)


def sweep(root: Path) -> None:
    """Removes what a trial that was killed has left."""
    for directory in root.glob(f"{_PREFIX}*"):
        unmount_all(directory)
        trees.remove(str(directory))


@contextlib.contextmanager
def _trial_directory(root: Path) -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix=_PREFIX, dir=root)
    try:
        yield directory
    finally:
        unmount_all(directory)
        trees.remove(directory)


def _smallest_image() -> bytes:
    """An EROFS image of one extra device and an empty root directory (fs/erofs/erofs_fs.h)."""
    inode = _DEVICES + 128
    names = struct.pack("<QHBBQHBB", inode // 32, 24, 2, 0, inode // 32, 25, 2, 0) + b"..."
    root = struct.pack("<HHHHIIIIHHI", 2 << 1, 0, 0o40755, 2, len(names), 0, 0, 1, 0, 0, 0) + names
    superblock = struct.pack(
        "<IIIBBHQQIIII16s16sIHHH",
        *(0xE0F5E1E2, 0, 0, 9, 0, inode // 32, 1, 0, 0, 3, 0, 0, bytes(16), b"probe", 0x8, 0, 1, _DEVICES // 128),
    )
    image = (bytes(_SUPERBLOCK) + superblock).ljust(_DEVICES, b"\0") + struct.pack("<64sII", b"tar", 1, 0)
    return (image.ljust(inode, b"\0") + root).ljust(3 * _BLOCK, b"\0")
