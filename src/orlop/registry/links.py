"""`Link`: where a list goes on (RFC 8288; OCI distribution-spec, listing)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urljoin

from orlop.registry.transport import origin

_LINK = re.compile(r"<([^<>]*)>([^<>,\"]*(?:\"[^\"]*\"[^<>,\"]*)*)")
_NEXT = re.compile(r";[ \t]*rel[ \t]*=[ \t]*(?:\"[^\"]*\bnext\b[^\"]*\"|next)[ \t]*(?:;|$)", re.IGNORECASE | re.ASCII)
_LIMIT = 8 << 10


def next_url(fields: Iterable[str], asked: str) -> str:
    """The URL of the next page after `asked`; empty if there is none at the same host."""
    for field in fields:
        for match in _LINK.finditer(field[:_LIMIT]):
            if not _NEXT.search(match[2]):
                continue
            try:
                url: str = urljoin(asked, match[1])
                if origin(url) == origin(asked):
                    return url
            except ValueError:
                continue
    return ""
