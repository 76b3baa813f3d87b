"""Transformations of mounts, which a type names in front: `format/mkdir/overlay`.

`format` fills in where earlier mounts of the same activation are, `mkdir` makes directories and `mkfs` an image with
an empty file system first. What they make lies below the roots that the daemon allows, and nowhere else.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from orlop.core.activation import ActiveMount
from orlop.core.mount import Mount
from orlop.errors import InvalidArgument, Unimplemented, Unknown
from orlop.mounts import syscalls as sc

Transform = Callable[[Mount, Sequence[ActiveMount], Sequence[str]], Mount]
"""Of a mount, those done before it, and the allowed roots."""

_ACTION = re.compile(r"\{\{\s*(\w+)((?:\s+-?[0-9]{1,4})+)\s*\}\}")
_MKDIR = "X-containerd.mkdir."
_MKFS = "X-containerd.mkfs."
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,15})\s*([kmgt]?)i?b?", re.IGNORECASE | re.ASCII)
_MKFS_TIMEOUT = 120.0
"""Seconds."""


def format_(mount: Mount, done: Sequence[ActiveMount], _roots: Sequence[str]) -> Mount:
    """Fills in `{{ mount 0 }}`, `{{ source 0 }}`, `{{ target 0 }}`, `{{ overlay 0 3 }}` (points joined by colons)."""
    return replace(
        mount,
        source=_filled(mount.source, done),
        target=_filled(mount.target, done),
        options=tuple(_filled(option, done) for option in mount.options),
    )


def _filled(text: str, done: Sequence[ActiveMount]) -> str:
    if "{{" not in text:
        return text

    def value(match: re.Match[str]) -> str:
        numbers = [int(number) for number in match[2].split()]
        for number in numbers:
            if not 0 <= number < len(done):
                raise Unknown(f"mount template {text!r}: index out of bounds: {number}, has {len(done)} active mounts")
        match match[1], numbers:
            case "mount", [one]:
                return done[one].point
            case "source", [one]:
                return done[one].mount.source
            case "target", [one]:
                return done[one].mount.target
            case "overlay", [first, last]:
                step = 1 if first <= last else -1
                return ":".join(done[number].point for number in range(first, last + step, step))
        raise Unknown(f"mount template {text!r}: {match[0]} is none of mount N, source N, target N, overlay N M")

    filled = _ACTION.sub(value, text)
    if "{{" in filled:
        raise Unknown(f"mount template {text!r} cannot be parsed")
    return filled


def mkdir(mount: Mount, _done: Sequence[ActiveMount], roots: Sequence[str]) -> Mount:
    """Makes the directories of `X-containerd.mkdir.path=<path>[:<octal mode>[:<uid>:<gid>]]` that are not there."""
    kept = []
    for option in mount.options:
        if option.startswith(_MKDIR):
            _make(option, roots)
        else:
            kept.append(option)
    return replace(mount, options=tuple(kept))


def _make(option: str, roots: Sequence[str]) -> None:
    key, _, value = option.removeprefix(_MKDIR).partition("=")
    path, *rest = value.split(":")
    if key != "path" or len(rest) not in (0, 1, 3) or not all(re.fullmatch(r"[0-9]{1,10}", part) for part in rest):
        raise InvalidArgument(f'invalid mkdir option "{option}"')
    try:
        mode = int(rest[0], 8) if rest else 0o700
    except ValueError:
        raise InvalidArgument(f'invalid mkdir option "{option}": the mode is no octal number') from None
    if mode > 0o777:
        raise InvalidArgument(f'invalid mkdir option "{option}": the mode has more than permissions')
    with _parent(path, roots, "mkdir") as (directory, name):
        try:
            os.mkdir(name, mode, dir_fd=directory)
        except FileExistsError:
            return
        # The umask took bits away; nobody else knows of the directory yet.
        os.chmod(name, mode, dir_fd=directory)
        if len(rest) == 3:
            os.chown(name, int(rest[1]), int(rest[2]), dir_fd=directory, follow_symlinks=False)


def mkfs(mount: Mount, _done: Sequence[ActiveMount], roots: Sequence[str]) -> Mount:
    """Makes the image `source` with an empty file system, unless it is there: options `X-containerd.mkfs.size=` (bytes,
    needed), `.fs=` (ext4 if not given), `.uuid=`."""
    settings = {"fs": "ext4", "uuid": "", "size": ""}
    kept = []
    for option in mount.options:
        if not option.startswith(_MKFS):
            kept.append(option)
            continue
        key, _, value = option.removeprefix(_MKFS).partition("=")
        if key not in settings:
            raise InvalidArgument(f"unknown mount option {key}")
        settings[key] = value
    size = _bytes(settings["size"])
    if settings["fs"] not in ("ext2", "ext3", "ext4", "xfs"):
        raise InvalidArgument(f'unsupported filesystem "{settings["fs"]}"')
    with _parent(mount.source, roots, "mkfs") as (directory, name):
        if not os.access(name, os.F_OK, dir_fd=directory, follow_symlinks=False):
            _make_image(directory, name, size, settings["fs"], settings["uuid"])
    return replace(mount, options=tuple(kept))


def _bytes(text: str) -> int:
    found = _SIZE.fullmatch(text)
    size = int(found[1]) * _UNITS[found[2].lower()] if found else 0
    if not size:
        raise InvalidArgument(f'mkfs requires mkfs.size option (found "{text}"): bytes, or as 64MiB')
    return size


def _make_image(directory: int, name: str, size: int, kind: str, uuid: str) -> None:
    """Under another name until it is whole, so that a crash leaves nothing that looks made."""
    draft = f".{name}.new"
    file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640, dir_fd=directory)
    try:
        os.ftruncate(file, size)
        identity = (["-m", f"uuid={uuid}"] if kind == "xfs" else ["-U", uuid]) if uuid else []
        command = [f"mkfs.{kind}", "-q", *identity, f"/proc/self/fd/{file}"]
        try:
            done = subprocess.run(command, capture_output=True, pass_fds=[file], timeout=_MKFS_TIMEOUT, env=_PATH)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unknown(f'failed format "{name}": {command[0]}: {error}') from error
        if done.returncode:
            text = (done.stderr or done.stdout).decode(errors="replace").strip()[-500:]
            raise Unknown(f'failed format "{name}": {command[0]} failed: {text}')
        os.fsync(file)
        os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(draft, dir_fd=directory)
        raise
    finally:
        os.close(file)


_PATH = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


@contextmanager
def _parent(path: str, roots: Sequence[str], what: str) -> Iterator[tuple[int, str]]:
    """The directory above `path` and the name in it, reached from the allowed root without leaving it."""
    root = next((root for root in roots if os.path.commonpath([root, os.path.normpath(path)]) == root), None)
    name = os.path.basename(path)
    if root is None or name in ("", ".", ".."):
        raise Unimplemented(f'no root "{path}" configured for {what}')
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        inner = os.path.dirname(os.path.relpath(path, root)) or "."
        resolve = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS
        try:
            directory = sc.openat2(base, inner, os.O_RDONLY | os.O_DIRECTORY, resolve)
        except OSError as error:
            text = os.strerror(error.errno or errno.EIO).lower()
            raise Unknown(f'{what} of "{path}": directory "{inner}" of {root}: {text}') from error
    finally:
        os.close(base)
    try:
        yield directory, name
    finally:
        os.close(directory)


TRANSFORMS: dict[str, Transform] = {"format": format_, "mkdir": mkdir, "mkfs": mkfs}
