"""What an OCI runtime says of a failure: the last error in its JSON log, in runc's words.

Clients look for runc's words; crun has others for some of the same things.
"""

from __future__ import annotations

import json
import os
import re

from orlop.shim import files

_LIMIT = 1 << 20
_CRUNS_WORDS = (
    (r"(?:error opening file|cannot open directory) [`'][^`']*?(?:/status)?[`']: No such file or directory",
     "container does not exist"),
    (r"(?:the )?container `[^`]*` is not running", "container not running"),
    (r"executable file `([^`/]*)` not found in \$PATH(?:: No such file or directory)?",
     r'exec: "\1": executable file not found in $PATH'),
    (r"executable file `([^`]*)` not found in \$PATH", r'exec: "\1": stat \1'),
    (r"open executable: Operation not permitted", "open executable: permission denied"),  # of what is no regular file
    (r"unknown command checkpoint", "crun was built without CRIU: only a container of runc can be checkpointed"),
)  # fmt: skip
_ERRNO = re.compile(r"(?<=: )([A-Z])(?=[a-z]+ )")
"""The first letter of a text of errno, which is small in Go."""


def size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def last_error(path: str, offset: int) -> str:
    """The last message of level error that was logged after `offset`."""
    try:
        lines = files.read(path, _LIMIT, max(offset, size(path) - _LIMIT)).splitlines()
    except FileNotFoundError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") == "error":
            return str(entry.get("msg", "")).strip()
    return ""


def in_runcs_words(text: str) -> str:
    """`text`, which crun has written."""
    for pattern, words in _CRUNS_WORDS:
        text = re.sub(pattern, words, text)
    return _ERRNO.sub(lambda match: match[1].lower(), text)
