"""Whether this kernel mounts an EROFS image from a file, and overlays on that, below a certain directory.

Linux 6.12 can (CONFIG_EROFS_FS_BACKED_BY_FILE), on file systems that read through the page cache, and where they are
not themselves stacked too deep. Nothing but a trial tells all of this.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orlop.erofs.directories import ROOT
from orlop.erofs.writer import ImageWriter
from orlop.mounts import erofs
from orlop.mounts import syscalls as sc
from orlop.mounts.mount import reason, unmount_all
from orlop.snapshots import trees, verity

_BLOCK = 512
_CONTENT = b"".join(bytes((number,)) * _BLOCK for number in range(18))
_UNEVEN = 7
_PREFIX = "probe-"


def refusal(root: Path) -> str:
    """Why layers below `root` cannot be mounted from indexes; empty if they can."""
    with _trial_directory(root) as directory:
        image, device = _write_image(directory)
        target = os.path.join(directory, "mount")
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


def direct_refusal(root: Path) -> str:
    """Why layers below `root` are not read past the page cache of their tars; empty if they can be.

    The file system must take such reads at every 512 bytes: a disk with larger sectors refuses most of them, and a
    container would be told of damage where there is none.
    """
    with _trial_directory(root) as directory:
        image, device = _write_image(directory)
        target = os.path.join(directory, "mount")
        os.mkdir(target, 0o700)
        try:
            erofs.mount_image(image, (device,), target, direct=True)
        except OSError as error:
            return f"the kernel does not read past the page cache here: {reason(error)}"
        try:
            read = Path(target, "file").read_bytes()
        except OSError as error:
            return f"the file system is not read directly at any multiple of {_BLOCK} bytes: {reason(error)}"
        return "" if read == _CONTENT[_BLOCK:-_UNEVEN] else "the file system reads something else directly"


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


def _write_image(directory: str) -> tuple[str, str]:
    """An index and its tar, with one file whose data begin and end within pages."""
    image, device = os.path.join(directory, "index"), os.path.join(directory, "tar")
    with open(image, "xb+") as index:
        writer = ImageWriter(index.fileno())
        target = writer.regular(0o400, 0, 0, 0, len(_CONTENT) - _BLOCK - _UNEVEN, 1)
        writer.directories.names(ROOT)[b"file"] = target
        writer.finish([len(_CONTENT)])
    with open(device, "xb") as tar:
        tar.write(_CONTENT)
        tar.flush()
        os.fsync(tar.fileno())
    return image, device
