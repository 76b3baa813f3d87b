"""Bundles: the directory a shim and its OCI runtime work in, and the work directory beside it.

`<state>/<namespace>/<id>` and `<root>/<namespace>/<id>`. Both components are identifiers, so that no message can make
a path. A bundle is removed under another name (`.<id>`), so that its id is free at once; names that begin with a dot
are leftovers, and are removed at start.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from orlop import faults
from orlop.core import identifiers
from orlop.errors import AlreadyExists, InvalidArgument, Unknown
from orlop.mounts.mount import unmount_all

log = logging.getLogger(__name__)

SANDBOX_FILE = "sandbox"
BOOTSTRAP_FILE = "bootstrap.json"
BINARY_FILE = "shim-binary-path"
REMAINS_FILE = "remains"
_PARENT_MODE = 0o711
_LIMIT = 64 << 10


class Bootstrap(msgspec.Struct, frozen=True):
    """Where a shim answers, and in which version of the task protocol."""

    version: int
    address: str
    protocol: str = "ttrpc"


class _IdMapping(msgspec.Struct, rename="camel"):
    container_id: int = msgspec.field(default=0, name="containerID")
    host_id: int = msgspec.field(default=0, name="hostID")
    size: int = 0


class _Linux(msgspec.Struct, rename="camel"):
    gid_mappings: list[_IdMapping] | None = None


class _Spec(msgspec.Struct):
    linux: _Linux | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    namespace: str
    id: str
    path: Path
    work: Path

    @property
    def rootfs(self) -> Path:
        return self.path / "rootfs"

    @property
    def log(self) -> Path:
        return self.path / "log"

    def bootstrap(self) -> Bootstrap | None:
        """What was written when the shim started; None if it never did. A bare `address` file is from before 2.0."""
        try:
            return msgspec.json.decode(_read(self.path / BOOTSTRAP_FILE), type=Bootstrap)
        except FileNotFoundError:
            pass
        except msgspec.MsgspecError as error:
            raise Unknown(f"bundle {self.path}: {BOOTSTRAP_FILE}: {error}") from None
        try:
            address = _read(self.path / "address").decode().strip()
        except FileNotFoundError:
            return None
        return Bootstrap(2, address)

    def write_bootstrap(self, bootstrap: Bootstrap, binary: str) -> None:
        path = str(self.path)
        _write(path, BINARY_FILE, binary.encode(), 0o600)
        faults.point("runtime.bundle.binary")
        _write(path, BOOTSTRAP_FILE, msgspec.json.encode(bootstrap), 0o644)

    def write_sandbox(self, id: str) -> None:
        _write(str(self.path), SANDBOX_FILE, id.encode(), 0o600)

    def sandbox(self) -> str:
        """The id of the sandbox whose shim serves this bundle; empty if it has one of its own."""
        try:
            return _read(self.path / SANDBOX_FILE).decode().strip()
        except FileNotFoundError:
            return ""

    def binary(self) -> str:
        """The shim binary that served this bundle; empty if none was started."""
        try:
            return _read(self.path / BINARY_FILE).decode().strip()
        except FileNotFoundError:
            return ""

    @property
    def has_runtime_options(self) -> bool:
        """Whether a shim noted here with what options it runs its OCI runtime."""
        return (self.path / "options.json").exists()

    def mark_as_remains(self) -> None:
        """Notes that the container is over for everybody who knows it, and still has to be deleted."""
        _write(str(self.path), REMAINS_FILE, b"", 0o600)

    @property
    def is_remains(self) -> bool:
        return (self.path / REMAINS_FILE).exists()

    def remove(self) -> None:
        """Unmounts the root file system and removes both directories. What is gone already is no error."""
        self.remove_rootfs()
        for directory in (str(self.path), str(self.work)):
            parent, _, name = directory.rpartition("/")
            aside = f"{parent}/.{name}"
            with contextlib.suppress(FileNotFoundError):
                _rename(directory, aside)
            faults.point("runtime.bundle.aside")
            remove_tree(aside)
            with contextlib.suppress(OSError):
                os.rmdir(parent)

    def remove_rootfs(self) -> None:
        """Unmounts and removes it. Not by tree: if a mount is still there, nothing below it may be touched."""
        with contextlib.suppress(FileNotFoundError):
            try:
                os.rmdir(self.rootfs)  # as a rule its shim has unmounted it, and all mounts need not be read
            except OSError:
                unmount_all(self.rootfs)
                os.rmdir(self.rootfs)


class Bundles:
    """All bundles of this daemon, below its `state` and `root` directories."""

    def __init__(self, state: Path, root: Path) -> None:
        self._state = state
        self._root = root

    def at(self, namespace: str, id: str) -> Bundle:
        """The place of a bundle. Raises InvalidArgument if either name is no identifier."""
        identifiers.validate(namespace, "invalid namespace")
        identifiers.validate(id, "invalid task id")
        return Bundle(namespace, id, self._state / namespace / id, self._root / namespace / id)

    def create(self, namespace: str, id: str, spec: bytes | None) -> Bundle:
        """A new bundle with `spec` as `config.json`. Raises AlreadyExists if there is one; a failure leaves nothing."""
        bundle = self.at(namespace, id)
        try:
            _make_in_namespace(str(bundle.path), 0o700)
        except FileExistsError:
            raise AlreadyExists(f"bundle {bundle.path}") from None
        try:
            self._fill(bundle, spec)
        except BaseException:
            bundle.remove()
            raise
        return bundle

    def _fill(self, bundle: Bundle, spec: bytes | None) -> None:
        path, work = str(bundle.path), str(bundle.work)
        group = _mapped_group(spec)
        if group is not None:
            os.chown(path, -1, group)
            os.chmod(path, 0o710)  # noqa: S103
        _make(f"{path}/rootfs", _PARENT_MODE)
        try:
            _make_in_namespace(work, _PARENT_MODE)
        except FileExistsError:
            remove_tree(work)  # of a bundle that a crash has taken away before it
            _make_in_namespace(work, _PARENT_MODE)
        os.symlink(work, f"{path}/work")
        os.mkfifo(f"{path}/log", 0o700)
        if spec is not None:
            _write(path, "config.json", spec, 0o600)
        faults.point("runtime.bundle.created")

    def walk(self) -> Iterator[Bundle]:
        """Every bundle on disk; directories that are empty or leftovers are removed on the way."""
        for parent in _directories(self._state):
            for path in _directories(parent):
                if path.name.startswith("."):
                    remove_tree(str(path))
                    continue
                try:
                    bundle = self.at(parent.name, path.name)
                except InvalidArgument:
                    continue
                if any(path.iterdir()):
                    yield bundle
                else:
                    path.rmdir()

    def remove_stale_work(self, known: set[tuple[str, str]]) -> None:
        """Removes work directories without a task."""
        for parent in _directories(self._root):
            for path in _directories(parent):
                if (parent.name, path.name) not in known:
                    remove_tree(str(path))


def remove_tree(path: str) -> None:
    """Removes a directory and all below it, but nothing of another file system. Absent is fine."""
    try:
        root = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(root.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    files: list[str] = []
    directories = [path]
    for directory in directories:  # it grows meanwhile; all is looked at before anything is removed
        with os.scandir(directory) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    files.append(entry.path)
                elif os.lstat(entry.path).st_dev != root.st_dev or os.path.ismount(entry.path):
                    raise Unknown(f"{entry.path} is a mount point: {path} is not removed")
                else:
                    directories.append(entry.path)
    for file in files:
        os.unlink(file)
    for directory in reversed(directories):
        os.rmdir(directory)


def _directories(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir() and not path.is_symlink())
    except FileNotFoundError:
        return []


def _mapped_group(spec: bytes | None) -> int | None:
    """The group on the host that is group 0 inside; None without a user namespace."""
    if spec is None:
        return None
    try:
        linux = msgspec.json.decode(spec, type=_Spec).linux
    except msgspec.MsgspecError as error:
        raise Unknown(f"container spec: {error}") from None
    for mapping in (linux.gid_mappings or []) if linux else []:
        if mapping.container_id <= 0 < mapping.container_id + mapping.size:
            return mapping.host_id - mapping.container_id
    return None


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Unknown(f"{path} is no regular file")
        return file.read(_LIMIT)


def _make(path: str, mode: int) -> None:
    """Makes a directory of exactly `mode`, whatever the umask."""
    os.mkdir(path, mode)
    os.chmod(path, mode)


def _make_in_namespace(path: str, mode: int) -> None:
    """Makes a directory in that of its namespace, which whoever removes the last bundle of the namespace may remove."""
    while True:
        try:
            _make(path, mode)
            return
        except FileNotFoundError:
            parent = os.path.dirname(path)
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # others make and remove it, too
                os.makedirs(parent)
                os.chmod(parent, _PARENT_MODE)


def _rename(directory: str, aside: str) -> None:
    """Moves `directory` to where an earlier removal may have left something."""
    try:
        os.rename(directory, aside)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        remove_tree(aside)
        os.rename(directory, aside)


def _write(directory: str, name: str, data: bytes, mode: int) -> None:
    """Whole or not at all: written aside and renamed."""
    aside = f"{directory}/.{name}"
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)
    os.rename(aside, f"{directory}/{name}")
