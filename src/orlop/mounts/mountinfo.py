"""The kernel's mount table, `/proc/self/mountinfo` (proc(5)).

Paths are bytes: a mount point's name is whatever somebody called it. Fields are parted by single spaces and may be
empty; spaces, tabs, newlines, `#` and backslashes in them are written as octal escapes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")
_DELETED = b"//deleted"


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One mount: `root` of its file system seen at `point`; `optional` has its propagation (`shared:1`)."""

    id: int
    parent: int
    device: tuple[int, int]
    root: bytes
    point: bytes
    options: tuple[str, ...]
    optional: tuple[str, ...]
    type: str
    source: bytes
    super_options: tuple[str, ...]

    @property
    def is_shared(self) -> bool:
        """Whether mounts made below it show in other mount namespaces."""
        return any(field.startswith("shared:") for field in self.optional)

    def lies_below(self, directory: bytes) -> bool:
        """Whether it is mounted at `directory` or inside it."""
        return self.point == directory or self.point.startswith(directory.rstrip(b"/") + b"/")


def read() -> list[MountEntry]:
    """Every mount of this process's namespace, parents before children."""
    with open("/proc/self/mountinfo", "rb") as file:
        return parse(file.read())


def parse(table: bytes) -> list[MountEntry]:
    """The mounts of `table`. Raises ValueError, quoting the line, where one cannot be read."""
    return [_parse_line(line) for line in table.split(b"\n") if line]


def of_path(path: bytes, entries: list[MountEntry]) -> MountEntry | None:
    """The mount that `path`, absolute and free of links, lies on."""
    best: MountEntry | None = None
    for entry in entries:
        point = entry.point.rstrip(b"/")
        inside = path == entry.point or path.startswith(point + b"/")
        # Of two mounts at one point the later hides the earlier.
        if inside and (best is None or len(entry.point) >= len(best.point)):
            best = entry
    return best


def _parse_line(line: bytes) -> MountEntry:
    fields = line.split(b" ")
    try:
        separator = fields.index(b"-", 6)
        type_, source, super_options = fields[separator + 1 : separator + 4]
        major, minor = fields[2].split(b":")
        return MountEntry(
            id=int(fields[0]),
            parent=int(fields[1]),
            device=(int(major), int(minor)),
            root=unescape(fields[3]).removesuffix(_DELETED),
            point=unescape(fields[4]).removesuffix(_DELETED),
            options=_texts(fields[5].split(b",")),
            optional=_texts(fields[6:separator]),
            type=_text(type_),
            source=unescape(source),
            super_options=_texts(super_options.split(b",")),
        )
    except (ValueError, IndexError) as error:
        raise ValueError(f"mount table: cannot read line {line[:200]!r}") from error


def unescape(field: bytes) -> bytes:
    """`field` with its octal escapes read."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field)


def _texts(fields: list[bytes]) -> tuple[str, ...]:
    return tuple(_text(field) for field in fields)


def _text(field: bytes) -> str:
    return field.decode(errors="surrogateescape")
