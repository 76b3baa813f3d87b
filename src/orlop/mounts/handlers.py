"""Types of mounts that need more than mount(2): EROFS images in files, and block devices made of files."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from dataclasses import replace

from orlop.core.activation import MountHandler
from orlop.core.mount import Mount
from orlop.errors import Unimplemented, Unknown
from orlop.mounts import loop
from orlop.mounts.mount import MountError, mount_all, unmount

_VERITY = "X-containerd.dmverity="


class ErofsHandler:
    """Mounts `erofs` images, and their extra `device=` files, from the files; by loop devices before Linux 6.12."""

    def mount(self, mount: Mount, point: str) -> Mount:
        """Raises Unimplemented for an image that dm-verity shall guard, MountError."""
        if any(option.startswith(_VERITY) for option in mount.options):
            raise Unimplemented(f"{mount.source}: layers guarded by dm-verity")
        plain = replace(mount, options=tuple(option for option in mount.options if option != "loop"))
        os.mkdir(point, 0o700)
        try:
            mount_all([plain], point)
        except MountError as error:
            if error.errno != errno.ENOTBLK:
                raise
            return _mount_by_loop(plain, point)
        return plain

    def unmount(self, point: str) -> None:
        unmount(point)


class LoopHandler:
    """A mount of type `loop` makes a block device of its source, and its mount point a link to that device."""

    def mount(self, mount: Mount, point: str) -> Mount:
        """Raises Unknown."""
        try:
            device = loop.attach(mount.source, readonly="ro" in mount.options)
        except OSError as error:
            raise Unknown(f"loop device for {mount.source}: {error.strerror}") from error
        os.symlink(device, point)
        return mount

    def unmount(self, point: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            loop.detach(os.readlink(point))
            os.unlink(point)


def _mount_by_loop(mount: Mount, point: str) -> Mount:
    def device(path: str) -> str:
        return devices.enter_context(loop.attached(path, readonly=True))

    with contextlib.ExitStack() as devices:
        try:
            options = [
                f"device={device(option.removeprefix('device='))}" if option.startswith("device=") else option
                for option in mount.options
            ]
            done = replace(mount, source=device(mount.source), options=tuple(options))
        except OSError as error:
            raise Unknown(f"loop devices for {mount.source}: {error.strerror}") from error
        mount_all([done], point)
    return done


HANDLERS: Mapping[str, MountHandler] = {"erofs": ErofsHandler(), "loop": LoopHandler()}
"""By the type that each mounts."""
