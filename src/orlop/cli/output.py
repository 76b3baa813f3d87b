"""How results look: tables for people, plain lines where the output is no terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from orlop.core import clock


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints columns, as wide as what they hold. What a cell holds cannot end the line or move a terminal."""
    rows = [[plain(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        line = "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")


def plain(text: str) -> str:
    """`text` with control characters spelt out: names and histories of images are other people's."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def echo_json(document: object) -> None:
    """Prints a document as other programs read it, and people too."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def size(count: int) -> str:
    """Bytes as people read them: `1.2 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def age(since: int) -> str:
    """How long ago a time (nanoseconds since 1970) was: `3 minutes`."""
    seconds = max(clock.now() - since, 0) // 1_000_000_000
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = seconds // length
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{seconds} second{'' if seconds == 1 else 's'}"


def short(digest: str) -> str:
    """The first twelve characters of a digest's hex."""
    return digest.partition(":")[2][:12]


def is_terminal() -> bool:
    return os.isatty(1)
