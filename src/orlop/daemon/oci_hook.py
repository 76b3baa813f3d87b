"""`orlopd oci-hook`: fills templates in a hook's arguments from the container's state, then becomes the hook.

Known: `{{id}}`, `{{bundle}}`, `{{rootfs}}`, `{{pid}}`, `{{status}}` and `{{annotation "key"}}`. The state comes on
standard input as the OCI runtime specification says for hooks.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import msgspec

from orlop.errors import InvalidArgument

_LIMIT = 16 << 20
_FIELD = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
_ANNOTATION = re.compile(r'annotation\s+(?:"([^"\\]*)"|`([^`]*)`)')


class State(msgspec.Struct):
    """The state of a container, as a hook gets it."""

    id: str = ""
    status: str = ""
    pid: int = 0
    bundle: str = ""
    annotations: dict[str, str] = msgspec.field(default_factory=dict)


class _Root(msgspec.Struct):
    path: str = ""


class _Spec(msgspec.Struct):
    root: _Root = msgspec.field(default_factory=_Root)


def render(text: str, state: State, rootfs: str) -> str:
    """`text` with its templates filled. Raises InvalidArgument for one that is not known."""
    values = {
        "id": state.id,
        "bundle": state.bundle,
        "rootfs": rootfs,
        "pid": str(state.pid),
        "status": state.status,
    }

    def fill(match: re.Match[str]) -> str:
        expression = match[1]
        if expression in values:
            return values[expression]
        annotation = _ANNOTATION.fullmatch(expression)
        if annotation is None:
            raise InvalidArgument(f'template "{match[0]}": function not defined')
        return state.annotations.get(annotation[1] if annotation[1] is not None else annotation[2], "")

    return _FIELD.sub(fill, text)


def run(arguments: Sequence[str]) -> NoReturn:
    """Replaces this process by the hook. Raises InvalidArgument, or OSError if the hook cannot be started."""
    if not arguments:
        raise InvalidArgument("oci-hook needs the hook's program and arguments")
    try:
        state = msgspec.json.decode(sys.stdin.buffer.read(_LIMIT), type=State)
        with open(os.path.join(state.bundle, "config.json"), "rb") as file:
            spec = msgspec.json.decode(file.read(_LIMIT), type=_Spec)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgument(f"oci-hook: {error}") from None
    rootfs = os.path.join(state.bundle, spec.root.path)
    rendered = [render(argument, state, rootfs) for argument in arguments]
    environment = {name: render(value, state, rootfs) for name, value in os.environ.items()}
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execve(rendered[0], rendered, environment)  # noqa: S606
