"""Mounts that last as long as a `with` block."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from orlop.core.mount import Mount
from orlop.errors import Unimplemented
from orlop.mounts import image, mountinfo, options
from orlop.mounts import syscalls as sc
from orlop.mounts.activate import perform, plan, release
from orlop.mounts.handlers import HANDLERS
from orlop.mounts.mount import MountError, mount_all, reason, unmount, unmount_all

_PREFIX = "containerd-mount"
_WRITABLE_IMAGE = "mkfs/ext4"
"""How the snapshotter erofs has an image mounted whose directory `upper` is written to."""
_UPPER = "upper"
_MADE_FIRST = "X-containerd.mkdir."

_log = logging.getLogger(__name__)


class TemporaryMounts:
    """Directories under `root` on which something is mounted for a while.

    Nothing mounted here shows in another mount namespace: where `root` lies on a shared mount, it is first made a
    private mount of its own, which stays until `close`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._private = False

    @contextlib.contextmanager
    def mounted(self, mounts: Sequence[Mount], *, readonly: bool = False) -> Iterator[str]:
        """The directory at which `mounts` are mounted; `readonly`: the same content, not to be written.

        Raises MountError whose text starts `failed to mount <directory>: `. Unmounted when the block ends, lazily
        where something still uses it.
        """
        self._prepare()
        directory = tempfile.mkdtemp(prefix=_PREFIX, dir=self._root)
        try:
            with contextlib.ExitStack() as stack:
                if readonly:
                    mounts = [self._read_only(stack, mount) for mount in mounts]
                mounts = [dataclasses.replace(m, options=_without(m.options, "volatile")) for m in mounts]
                ready = stack.enter_context(self._prepared(mounts))
                try:
                    mount_all(ready, directory)
                except MountError as error:
                    raise MountError.verbatim(f"failed to mount {directory}: {error}") from error
                try:
                    yield directory
                finally:
                    self._take_off(directory, len(ready))
        finally:
            self._remove(directory)

    def _read_only(self, stack: contextlib.ExitStack, mount: Mount) -> Mount:
        """The same content, for as long as `stack` lasts; nothing is made for it.

        An image that others may write to is seen as they see it.
        """
        if mount.type != _WRITABLE_IMAGE:
            kept = _without(options.read_only(mount.options, mount.type), _MADE_FIRST)
            return dataclasses.replace(mount, options=kept)
        place = tempfile.mkdtemp(prefix=_PREFIX, dir=self._root)
        stack.callback(self._remove, place)
        if not os.path.lexists(mount.source):  # nobody has mounted it yet: what is seen of it is empty
            upper = os.path.join(place, _UPPER)
            os.mkdir(upper)
            stack.callback(os.rmdir, upper)
            return Mount("bind", place, ("ro", "rbind"))
        try:
            root = stack.enter_context(image.opened(mount.source, "ext4"))
            sc.move_mount(root, place)
        except OSError as error:
            raise MountError.of(error, f"failed to mount {place}: {mount.source}: {reason(error)}") from error
        stack.callback(lambda: unmount(place, detach=True))  # its root is open until the image is let go
        return Mount("bind", place, ("ro", "rbind"))

    @contextlib.contextmanager
    def _prepared(self, mounts: Sequence[Mount]) -> Iterator[Sequence[Mount]]:
        """What is left to mount of `mounts` once those have been mounted that the kernel does not know as they are."""
        try:
            planned = plan(mounts, HANDLERS)
        except Unimplemented:
            yield mounts
            return
        directory = tempfile.mkdtemp(prefix=_PREFIX, dir=self._root)
        _, system = perform(planned, directory, HANDLERS, ())
        try:
            yield system
        finally:
            release(directory, HANDLERS)

    def cleanup(self) -> None:
        """Unmounts and removes what a daemon that was killed has left. Only before the first use of `mounted`."""
        if not self._root.is_dir():
            return
        unmount_all(self._root)
        self._private = False
        for name in os.listdir(self._root):
            if name.startswith(_PREFIX):
                self._remove(os.path.join(self._root, name))

    def close(self) -> None:
        """Unmounts what is left and `root` itself. Safe to call again."""
        if self._root.is_dir():
            unmount_all(self._root)
        self._private = False

    def _prepare(self) -> None:
        if self._private:
            return
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root.chmod(0o700)
        root = os.path.realpath(self._root)
        below = mountinfo.of_path(os.fsencode(root), mountinfo.read())
        if below is not None and below.is_shared:
            sc.mount(root, root, "", sc.MS_BIND, "")
            sc.mount("", root, "", sc.MS_PRIVATE, "")
        self._private = True

    @staticmethod
    def _take_off(directory: str, count: int) -> None:
        for _ in range(count):
            try:
                unmount(directory)
            except MountError as error:
                _log.warning("temporary mount is in use, detaching it: %s", error)
                unmount(directory, detach=True)
        # Whatever came to be mounted inside went along with a detached parent, or makes this find something.
        unmount_all(directory)

    @staticmethod
    def _remove(directory: str) -> None:
        # rmdir, never a recursive removal: what is in there may be somebody's files.
        try:
            os.rmdir(directory)
        except OSError as error:
            _log.warning("temporary mount directory stays: %s", error)


def _without(options: Sequence[str], prefix: str) -> tuple[str, ...]:
    return tuple(option for option in options if not option.startswith(prefix))
