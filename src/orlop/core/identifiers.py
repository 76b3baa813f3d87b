"""Identifiers: of namespaces, containers, sandboxes, execs and event topic components.

Rule of containerd: 1 to 76 bytes of letters and digits, with single `.`, `_` or `-` between them.
"""

from __future__ import annotations

import re
from functools import lru_cache

from orlop.errors import InvalidArgument

MAX_LENGTH = 76
PATTERN = "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
_GRAMMAR = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*", re.ASCII)


@lru_cache(maxsize=512)
def validate(text: str, what: str = "") -> str:
    """Returns `text` if it is an identifier; raises InvalidArgument, its message led by `what`, if not."""
    prefix = f"{what}: " if what else ""
    if not text:
        raise InvalidArgument(f"{prefix}identifier must not be empty")
    if len(text.encode()) > MAX_LENGTH:
        raise InvalidArgument(f'{prefix}identifier "{text}" greater than maximum length ({MAX_LENGTH} characters)')
    if not _GRAMMAR.fullmatch(text):
        raise InvalidArgument(f'{prefix}identifier "{text}" must match {PATTERN}')
    return text
