"""Runtime names, and the shim binary that each stands for (containerd's shim v2 contract, "Choosing a runtime")."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from orlop.errors import Unknown

OWN_BINARY = "containerd-shim-orlop-v2"
BUILTIN = ("io.containerd.runc.v2", "io.containerd.orlop.v2")


def binary_name(runtime: str) -> str:
    """`io.containerd.runc.v2` is `containerd-shim-runc-v2`. Empty if `runtime` is no runtime name."""
    parts = runtime.split(".")
    if len(parts) < 2 or not parts[0] or "/" in runtime:
        return ""
    return f"containerd-shim-{parts[-2]}-{parts[-1]}"


@dataclass(frozen=True, slots=True)
class ShimBinary:
    """The program that serves a runtime; `builtin` ones are forked from the fork server rather than executed."""

    path: str
    builtin: bool = False


class ShimBinaries:
    """Finds shim binaries, and remembers what it found. A missing one is looked for again each time."""

    def __init__(self, builtin: tuple[str, ...] = BUILTIN) -> None:
        self._builtin = frozenset(builtin)
        self._found: dict[str, ShimBinary] = {}

    def resolve(self, runtime: str) -> ShimBinary:
        """The binary of `runtime`, a name or an absolute path. Raises Unknown in containerd's words."""
        found = self._found.get(runtime)
        if found is None:
            found = self._found[runtime] = self._look_up(runtime)
        return found

    def _look_up(self, runtime: str) -> ShimBinary:
        if runtime in self._builtin:
            return ShimBinary(own_binary(), builtin=True)
        if os.path.isabs(runtime):
            if not os.path.exists(runtime):
                raise Unknown(f"failed to resolve runtime path: invalid runtime path {runtime}: file does not exist")
            return ShimBinary(runtime)
        name = binary_name(runtime)
        if not name:
            raise Unknown(
                f"failed to resolve runtime path: invalid runtime name {runtime}, correct runtime name should be "
                "either format like `io.containerd.runc.v2` or a full path to the binary"
            )
        path = os.path.abspath(name) if os.access(name, os.X_OK) else shutil.which(name)
        path = path or _beside_the_daemon(name)
        if path is None:
            raise Unknown(
                f'failed to resolve runtime path: runtime "{runtime}" binary not installed "{name}": '
                "file does not exist"
            )
        return ShimBinary(os.path.realpath(path))


def own_binary() -> str:
    """Our own shim as an executable, for the calls that are not worth a fork server (`delete`, `-info`)."""
    return _beside_the_daemon(OWN_BINARY) or shutil.which(OWN_BINARY) or OWN_BINARY


def _beside_the_daemon(name: str) -> str | None:
    """Console scripts of one installation lie together: beside the interpreter, or beside what was started."""
    for directory in (Path(sys.executable).parent, Path(sys.argv[0]).absolute().parent):
        if os.access(directory / name, os.X_OK):
            return str(directory / name)
    return None
