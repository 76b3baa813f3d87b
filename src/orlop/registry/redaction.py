"""URLs as they may be shown: user names, passwords and what a query says (signatures, tokens) are left out."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

_HARMLESS = frozenset({"ns", "n", "last", "service", "scope", "artifactType", "digest", "mount", "from"})


def redact(url: str) -> str:
    """`url` for messages and logs."""
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=100)
    except ValueError:
        return "(a URL that is none)"
    shown = "&".join(f"{name}={value if name in _HARMLESS else 'redacted'}" for name, value in query)
    host = parts.netloc.rpartition("@")[2]
    return printable(f"{parts.scheme}://{host}{parts.path}{shown and '?' + shown}")


def printable(text: str, limit: int = 500) -> str:
    """What a foreign program says, in one line of plain characters."""
    line = "".join(character if character.isprintable() else " " for character in text[: 4 * limit])
    line = " ".join(line.split())
    return line if len(line) <= limit else f"{line[:limit]}..."
