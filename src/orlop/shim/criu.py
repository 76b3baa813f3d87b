"""CRIU behind the OCI runtime: which standard streams lie outside the container, and why it failed.

CRIU refuses to keep a file that no mount of the container leads to, as the client's FIFOs are. Declared external, by
the mount and inode that it knows them by, they are left out, and a restore puts the new streams in their place. The
runtime has no flags for that; CRIU reads them from a file that its environment names.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping

from orlop.errors import InvalidArgument, OrlopError, Unknown
from orlop.shim import files

STREAMS_FILE = "streams.json"
"""Ours, in the directory of a checkpoint: descriptors, their kinds and permissions, by CRIU's names of the files."""

_VARIABLE = b"CRIU_CONFIG_FILE"
_EXTERNAL = re.compile(r"file\[[0-9a-f]{1,8}:[0-9a-f]{1,16}\]", re.ASCII)
_FIFO, _FILE = "FIFO", "file"
_STREAMS_LIMIT = 4 << 10
_TAIL = 64 << 10
_MARK = b"Error ("


Stream = tuple[int, str, int]
"""A descriptor, of what kind it is, and its permissions."""


def streams_outside(pid: int) -> dict[str, Stream]:
    """The FIFOs and files of the host among the standard streams of `pid`, each with its first descriptor."""
    inside = {int(line.split(b" ", 1)[0]) for line in files.read(f"/proc/{pid}/mountinfo").splitlines()}
    found: dict[str, Stream] = {}
    for number in range(3):
        path = f"/proc/{pid}/fd/{number}"
        try:
            status = os.stat(path)
            kind = _kind(status.st_mode)
            is_named = os.readlink(path).startswith("/")
            facts = dict(line.split(b":", 1) for line in files.read(f"/proc/{pid}/fdinfo/{number}").splitlines())
        except OSError:
            continue  # the process has closed it
        mount = int(facts[b"mnt_id"])
        if kind and is_named and mount not in inside:
            found.setdefault(f"file[{mount:x}:{status.st_ino:x}]", (number, kind, stat.S_IMODE(status.st_mode)))
    return found


def leaving_out(
    streams: Mapping[str, Stream], images: str, path: str, environment: Mapping[bytes, bytes]
) -> Mapping[bytes, bytes]:
    """The environment of a checkpoint to `images` that leaves `streams` out; CRIU's configuration goes to `path`."""
    os.makedirs(images, 0o700, exist_ok=True)
    files.write(os.path.join(images, STREAMS_FILE), json.dumps(streams).encode())
    return _configured((f"external {name}" for name in streams), path, environment)


def taking_over(
    images: str, new: Mapping[int, int], path: str, environment: Mapping[bytes, bytes]
) -> Mapping[bytes, bytes]:
    """The environment of a restore from `images` that puts the `new` streams where the checkpoint left some out.

    `new` maps the process's descriptors to ours. Raises InvalidArgument where one is of another kind than the old one,
    which CRIU cannot put in its place, and for a list of streams that is none of ours: the checkpoint may be anybody's.
    """
    try:
        content = files.read(os.path.join(images, STREAMS_FILE), _STREAMS_LIMIT)
    except FileNotFoundError:
        return environment
    try:
        streams = json.loads(content)
    except (ValueError, RecursionError):
        streams = None
    if not isinstance(streams, dict) or not all(
        _EXTERNAL.fullmatch(name) and _is_stream(stream) for name, stream in streams.items()
    ):
        raise InvalidArgument(f"checkpoint: {STREAMS_FILE} does not name standard streams")
    for number, kind, mode in streams.values():
        if _kind(os.fstat(new[number]).st_mode if number in new else 0) != kind:
            raise InvalidArgument(f"checkpoint: descriptor {number} was a {kind}: it has to be a {kind} again")
        if kind == _FIFO and mode & ~0o700 == 0:  # CRIU insists on the permissions; these open it to nobody
            os.fchmod(new[number], mode)
    return _configured((f"inherit-fd fd[{number}]:{name}" for name, (number, *_) in streams.items()), path, environment)


def _is_stream(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    number, kind, mode = value
    return type(number) is int and 0 <= number <= 2 and kind in (_FIFO, _FILE) and type(mode) is int


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return _FIFO
    return _FILE if stat.S_ISREG(mode) else ""


def _configured(lines: Iterator[str], path: str, environment: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """`environment` with CRIU's configuration in `path`: what it named before, and `lines`."""
    before = environment.get(_VARIABLE)
    content = files.read(os.fsdecode(before)) + b"\n" if before else b""
    files.write(path, content + "".join(f"{line}\n" for line in lines).encode())
    return {**environment, _VARIABLE: os.fsencode(path)}


def reason(path: str) -> str:
    """The error in the log at `path` that ended it, to be put behind a message; empty if there is none.

    The first one is the cause and the others follow from it; what CRIU says of its helper programs and its own limits
    tells less.
    """
    try:
        lines = files.read(path, _TAIL, max(0, os.stat(path).st_size - _TAIL)).split(b"\n")
    except OSError:
        return ""
    for line in lines:
        _, _, text = line.partition(_MARK)
        where, _, said = text.partition(b"): ")
        if said and not where.startswith(b"criu/util.c") and not said.endswith(b"FAILED."):
            return f": criu: {said.decode('utf-8', 'replace').strip()}"
    return ""


@contextlib.contextmanager
def told(path: str) -> Iterator[None]:
    """An error inside ends with what the log at `path` says."""
    try:
        yield
    except OrlopError as error:
        why = reason(path)
        if not why:
            raise
        raise Unknown(f"{error}{why}") from error
