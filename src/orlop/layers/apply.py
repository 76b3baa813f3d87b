"""A layer's tar stream made into files below a directory (OCI image-spec, layer.md, "Applying Changesets").

The archive is hostile input: every path is resolved inside the root by `tree`, every new name is made in a directory
that is held open, and metadata is set on descriptors. Modes are set with fchmod, so that the umask does not matter.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from orlop.core.diff import NeedsLower
from orlop.errors import Unknown, of_call
from orlop.layers import copy, tar, tree
from orlop.layers.tar import Entry, TarReader
from orlop.layers.tree import Path, Tree, shown

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
OVERLAY_OPAQUE = b"trusted.overlay.opaque"

_LATEST = (1 << 63) - 1
_DEVICE_NUMBER_LIMIT = 1 << 32
_OWNER_LIMIT = (1 << 32) - 1
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DEVICE_KINDS = {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """How to apply: `overlay` writes whiteouts as overlayfs has them, else they delete what is there.

    `lowers` are the directories below an overlay's upper one, topmost first: a parent directory that the archive
    does not have is made as it is in the first that has it.
    """

    overlay: bool = False
    lowers: Sequence[str] = ()
    loose: bool = False
    """The lower directories come later: where one would have to be looked at, NeedsLower is raised."""
    devices: bool = True
    """Whether device nodes are made; in a user namespace they cannot be, and are left out."""


def in_user_namespace() -> bool:
    """Whether this process lives in a user namespace other than the first."""
    try:
        with open("/proc/self/uid_map", "rb") as file:
            return file.read().split() != [b"0", b"0", b"4294967295"]
    except FileNotFoundError:
        return False


def apply(reader: TarReader, root: str | bytes, options: Options | None = None) -> int:
    """Applies what `reader` gives to the directory `root`; returns the sum of the files' sizes.

    Raises Unknown for an archive that is none or cannot be applied. What was applied before an error stays.
    """
    with Tree(root) as directories:
        return _Application(reader, directories, options or Options()).run()


class _Application:
    def __init__(self, reader: TarReader, directories: Tree, options: Options) -> None:
        self._reader = reader
        self._tree = directories
        self._options = options
        self._unpacked: set[Path] = set()
        """What this archive has put there, and the directories on the way to it: opaque markers spare these."""
        self._directories: dict[Path, Entry] = {}
        """Their times are set last, since files made inside change them."""

    def run(self) -> int:
        size = 0
        for entry in self._reader:
            size += entry.size
            self._tree.trim()
            path = tree.clean(entry.name)
            if not path or (entry.type in (tar.CHARACTER, tar.BLOCK_DEVICE) and not self._options.devices):
                continue
            try:
                check_owner(entry)
                self._one(entry, path)
            except OSError as error:
                refuse(entry, error)
        self._tree.forget()
        for real, entry in self._directories.items():
            self._set_directory_times(real, entry)
        return size

    def _one(self, entry: Entry, path: Path) -> None:
        real, parent = self._tree.resolve(path[:-1], self._make_parent)
        name = path[-1]
        if name.startswith(WHITEOUT):
            self._whiteout(entry, real, parent, name)
            return
        here = (*real, name)
        match entry.type:
            case tar.REGULAR:
                self._regular(entry, name, parent)
            case tar.DIRECTORY:
                self._directory(entry, here, parent)
            case tar.SYMLINK:
                parent = self._make_way(real, name, parent)
                os.symlink(entry.link, name, dir_fd=parent)
                self._set_metadata(entry, name, parent)
            case tar.LINK:
                self._link(entry, here, parent)
            case tar.CHARACTER | tar.BLOCK_DEVICE | tar.FIFO:
                parent = self._make_way(real, name, parent)
                os.mknod(name, _DEVICE_KINDS[entry.type] | 0o600, device(entry), dir_fd=parent)
                self._set_metadata(entry, name, parent)
            case _:
                raise Unknown(f"unhandled tar header type {entry.type[0]}")
        self._remember(here)

    def _remember(self, path: Path) -> None:
        unpacked = self._unpacked
        unpacked.add(path)
        above = path[:-1]
        while above and above not in unpacked:
            unpacked.add(above)
            above = above[:-1]

    def _make_way(self, real: Path, name: bytes, parent: int) -> int:
        """Removes what is at `name`; returns the descriptor of its parent, which may be another one afterwards."""
        if not tree.remove(name, parent):
            return parent
        self._tree.forget()
        here = (*real, name)
        if here in self._directories:
            self._directories = {path: e for path, e in self._directories.items() if path[: len(here)] != here}
        return self._tree.resolve(real)[1]

    def _regular(self, entry: Entry, name: bytes, parent: int) -> None:
        try:
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
        except FileExistsError:
            tree.remove(name, parent)
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
            # A directory or a link may have gone: what is cached beyond it must not be used again.
            self._tree.forget()
        try:
            self._write(entry, fd)
            os.fchown(fd, entry.uid, entry.gid)
            if entry.xattrs:
                _set_xattrs(entry, fd, stat.S_IFREG)
            os.fchmod(fd, entry.mode & 0o7777)
            os.utime(fd, ns=_times(entry))
        finally:
            os.close(fd)

    def _write(self, entry: Entry, fd: int) -> None:
        if entry.parts is not None:
            os.ftruncate(fd, entry.size)
            for offset, piece in self._reader.data(entry):
                while piece:
                    written = os.pwrite(fd, piece, offset)
                    piece = piece[written:]  # noqa: PLW2901
                    offset += written  # noqa: PLW2901
            return
        for piece in self._reader.stream.pieces(entry.stored):
            written = os.write(fd, piece)
            while written < len(piece):
                written += os.write(fd, piece[written:])

    def _directory(self, entry: Entry, here: Path, parent: int) -> None:
        name = here[-1]
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                parent = self._make_way(here[:-1], name, parent)
                os.mkdir(name, 0o700, dir_fd=parent)
        fd = self._tree.adopt(here, name, parent)
        os.fchown(fd, entry.uid, entry.gid)
        if entry.xattrs:
            _set_xattrs(entry, fd, stat.S_IFDIR)
        os.fchmod(fd, entry.mode & 0o7777)
        self._directories[here] = entry

    def _set_directory_times(self, real: Path, entry: Entry) -> None:
        self._tree.trim()
        try:
            where, fd = self._tree.resolve(real)
        except (FileNotFoundError, NotADirectoryError):
            return  # A later entry of this archive took it away.
        if where == real:
            os.utime(fd, ns=_times(entry))

    def _link(self, entry: Entry, here: Path, parent: int) -> None:
        target = tree.clean(entry.link)
        if not target:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        name = here[-1]
        if self._options.lowers or self._options.loose:
            self._bring_up(target)
        source_path, source = self._tree.resolve(target[:-1])
        if (*source_path, target[-1]) == here:
            # A link to itself: removing what is in its way would remove its target.
            return
        try:
            os.link(target[-1], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            parent = self._make_way(here[:-1], name, parent)
            source = self._tree.resolve(source_path)[1]
            os.link(target[-1], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        self._set_metadata(entry, name, parent)

    def _bring_up(self, path: Path) -> None:
        """What a hard link leads to is copied from the layers below if it is not here, as overlayfs does it."""
        try:
            _, parent = self._tree.resolve(path[:-1])
            os.stat(path[-1], dir_fd=parent, follow_symlinks=False)
            return
        except FileNotFoundError:
            if _hides(self._tree, path):
                return
        if self._options.loose:
            raise NeedsLower(f"hard link to {shown(path)[1:]!r}, which may be in a layer below")
        for lower in self._options.lowers:
            with Tree(lower) as below:
                try:
                    _, found = below.resolve(path[:-1])
                    status = os.stat(path[-1], dir_fd=found, follow_symlinks=False)
                except FileNotFoundError:
                    if _hides(below, path):
                        return
                    continue
                except NotADirectoryError:
                    return
                if not (stat.S_ISDIR(status.st_mode) or _is_whiteout(status)):
                    copy.copy_entry(path[-1], found, self._tree.resolve(path[:-1], self._make_parent)[1])
                return

    @staticmethod
    def _set_metadata(entry: Entry, name: bytes, parent: int) -> None:
        """Owner, attributes, mode and times of what is neither a new file nor a directory."""
        fd = tree.handle(name, parent)
        try:
            kind = stat.S_IFMT(os.fstat(fd).st_mode)
            place = tree.proc_path(fd)
            os.chown(place, entry.uid, entry.gid)
            if entry.xattrs:
                _set_xattrs(entry, place, kind)
            if kind != stat.S_IFLNK:
                os.chmod(place, entry.mode & 0o7777)
            os.utime(place, ns=_times(entry))
        finally:
            os.close(fd)

    def _whiteout(self, entry: Entry, real: Path, parent: int, name: bytes) -> None:
        if name == OPAQUE:
            if self._options.overlay:
                os.setxattr(parent, OVERLAY_OPAQUE, b"y")
            else:
                self._clear(real)
            return
        hidden = name[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise Unknown(f"invalid whiteout name: {shown((name,))[1:]}: invalid archive")
        if not self._options.overlay:
            self._make_way(real, hidden, parent)
            return
        parent = self._make_way(real, hidden, parent)
        os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=parent)
        os.chown(hidden, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)

    def _clear(self, real: Path) -> None:
        """Removes what lower layers had in the directory `real`."""
        _, fd = self._tree.resolve(real)
        tree.empty(b".", fd, self._unpacked.__contains__, real)
        self._tree.forget()

    def _make_parent(self, path: Path, parent: int) -> None:
        name = path[-1]
        if self._options.loose:
            raise NeedsLower(f"directory {shown(path)[1:]!r}, which may be in a layer below")
        os.mkdir(name, 0o755, dir_fd=parent)
        fd = self._tree.adopt(path, name, parent)
        os.fchmod(fd, 0o755)
        for lower in self._options.lowers:
            with Tree(lower) as below:
                try:
                    _, found = below.resolve(path)
                except FileNotFoundError:
                    if _hides(below, path):
                        return
                    continue
                except NotADirectoryError:
                    return  # Replaced there: nothing to copy from.
                copy.copy_metadata(found, fd)
                return


def _hides(lower: Tree, path: Path) -> bool:
    """Whether directories on the way to `path`, which is not in `lower`, hide what lies below them."""
    for depth in range(1, len(path)):
        try:
            _, found = lower.resolve(path[:depth])
            os.getxattr(found, OVERLAY_OPAQUE)
        except OSError:
            continue
        return True
    return False


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _set_xattrs(entry: Entry, place: int | str, kind: int) -> None:
    for key, value in entry.xattrs.items():
        if key.startswith(b"trusted."):
            _log.warning(
                "ignored xattr %r of %r in archive: admin attributes are not taken from archives", key, entry.name
            )
            continue
        try:
            os.setxattr(place, key, value)
        except OSError as error:
            plain = kind in (stat.S_IFREG, stat.S_IFDIR)
            if error.errno == errno.ENOTSUP or (error.errno == errno.EPERM and key.startswith(b"user.") and not plain):
                _log.warning("ignored xattr %r of %r in archive: %s", key, entry.name, error.strerror)
                continue
            error.filename = f"setxattr {key.decode('utf-8', 'backslashreplace')}"
            raise


def _times(entry: Entry) -> tuple[int, int]:
    """(access, modification); a time that the kernel's calls do not take becomes 1970."""
    modified = entry.mtime
    accessed = entry.atime if entry.atime is not None and entry.atime > modified else modified
    return (accessed if 0 <= accessed <= _LATEST else 0), (modified if 0 <= modified <= _LATEST else 0)


def check_owner(entry: Entry) -> None:
    """Raises OSError for a user or group that chown(2) does not take, or takes for no change."""
    if max(entry.uid, entry.gid) >= _OWNER_LIMIT:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def device(entry: Entry) -> int:
    """The device number that `entry` asks for. Raises Unknown for one out of range."""
    major, minor = entry.major, entry.minor
    if entry.type == tar.FIFO:
        return 0
    if max(major, minor) >= _DEVICE_NUMBER_LIMIT:
        raise Unknown(f"device number {major}:{minor} for {_text(entry.name)!r} out of range: invalid archive")
    try:
        return os.makedev(major, minor)
    except OverflowError:
        raise Unknown(
            f"device number {major}:{minor} for {_text(entry.name)!r} out of range: invalid archive"
        ) from None


def refuse(entry: Entry, error: OSError) -> NoReturn:
    """Raises what a client is told of a call that failed for `entry`."""
    what = error.filename if isinstance(error.filename, str) and error.filename.startswith("setxattr") else "apply"
    raise of_call(error, f'failed to {what} "{_text(entry.name)}"') from error


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
