"""What installed packages offer by name (entry points, as packaging.python.org specifies them).

`importlib.metadata` tells the same and takes 2 MB: it brings the parsers of mail, archives and tables.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

_SUFFIXES = (".dist-info", ".egg-info")
_DASHES = re.compile(r"[-_.]+")


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """`name` as `package` offers it: `value` is a module and the attribute in it, `module:attribute`."""

    name: str
    value: str
    package: str

    def load(self) -> Any:
        module, _, attributes = self.value.partition("[")[0].partition(":")
        found: Any = import_module(module.strip())
        for attribute in filter(None, attributes.strip().split(".")):
            found = getattr(found, attribute)
        return found


def entry_points(group: str, paths: Iterable[str] | None = None) -> list[EntryPoint]:
    """The entry points of `group`, of the packages in `paths`; by default those that can be imported.

    Of a package that is there twice, the first counts: it is the one that is imported.
    """
    found: list[EntryPoint] = []
    seen: set[str] = set()
    for path in sys.path if paths is None else paths:
        for information in _packages(Path(path or ".")):
            package = information.stem.partition("-")[0]
            normal = _DASHES.sub("-", package).lower()
            if normal not in seen:
                seen.add(normal)
                found += [EntryPoint(name, value, normal) for name, value in _read(information, group)]
    return found


def _packages(path: Path) -> list[Path]:
    try:
        return sorted(one for one in path.iterdir() if one.suffix in _SUFFIXES)
    except OSError:
        return []


def _read(information: Path, group: str) -> Iterator[tuple[str, str]]:
    try:
        text = (information / "entry_points.txt").read_text("utf-8")
    except OSError:
        return
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif section == group and line and line[0] not in "#;":
            name, equals, value = line.partition("=")
            if equals:
                yield name.strip(), value.strip()
