"""Which OCI runtime runs containers on this host: crun where it works, else runc.

crun starts a container three times as fast. A container that it would not run as its spec says goes to runc.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from orlop.oci.namespaces import in_user_namespace
from orlop.runtime.crun import Crun
from orlop.shim import hybrid

log = logging.getLogger(__name__)

AUTOMATIC = "auto"
_PROBE_TIMEOUT = 5.0

Find = Callable[[str], str | None]
Ask = Callable[[Sequence[str]], str]
"""What a command prints. Raises OSError or ValueError with the reason if it fails."""


@dataclass(frozen=True, slots=True)
class OciRuntime:
    """The runtime for containers that name none; `reason` says why it is not crun."""

    name: str
    reason: str = ""
    crun: Crun | None = None
    """What is known of the runtime, if it is crun."""
    other: str = ""
    """The runtime for what crun does not take; empty if there is none."""

    def __str__(self) -> str:
        return self.name if self.crun is None else str(self.crun)

    def for_spec(self, spec: bytes | None, *, restores: bool = False) -> str:
        """The runtime that takes `spec`; `restores`: from a checkpoint."""
        if self.crun is None or spec is None or not self.other:
            return self.name
        why = "crun was built without CRIU" if restores and not self.crun.has_criu else self.crun.why_not(spec)
        if why:
            log.info("a container is run by %s: %s", self.other, why)
        return self.other if why else self.name

    def as_taken(self, spec: bytes | None, runtime: str) -> bytes | None:
        """`spec` as `runtime`, which may be another one, takes it."""
        if spec is None or self.crun is None or runtime != self.name:
            return spec
        taken = self.crun.taken(spec)
        return spec if taken is not spec and self.crun.why_not(spec) else taken


def detect(
    choice: str = AUTOMATIC,
    find: Find = shutil.which,
    ask: Ask | None = None,
    is_hybrid: Callable[[], bool] = hybrid.has_controllers,
    why_not_apart: Callable[[], str] | None = None,
    is_rootless: Callable[[], bool] = in_user_namespace,
) -> OciRuntime:
    """The runtime of this host; `choice` is a program that is to be it whatever is found, or `AUTOMATIC`."""
    ask = ask or _ask
    crun, reason = None, ""
    if choice not in (AUTOMATIC, "crun"):
        reason = "configured"
    elif find("crun") is None:
        reason = "crun is not installed"
    elif choice == AUTOMATIC and is_rootless():
        reason = "in a user namespace crun does not signal a container that has no cgroup"
    else:
        apart = is_hybrid()
        try:
            crun = Crun.of(ask(["crun", "--version"]), is_apart=apart)
        except (OSError, ValueError) as error:
            reason = f"crun --version: {error}"
        if apart and not reason:
            reason = (why_not_apart or _why_not_apart)()
        if not reason and crun is not None and not crun.has_criu and _checkpoints(find, ask):
            reason = "crun was built without CRIU, which works on this host"
    if choice != AUTOMATIC:
        found = OciRuntime(choice, "" if choice == "crun" else reason, crun)
    elif reason or crun is None:
        found = OciRuntime("runc", reason)
    else:
        found = OciRuntime("crun", "", crun, "runc" if find("runc") is not None else "")
    log.info("OCI runtime: %s%s", found, f" ({found.reason})" if found.reason else "")
    return found


def _checkpoints(find: Find, ask: Ask) -> bool:
    """Whether checkpoints can be made here, which a client then expects."""
    if find("criu") is None:
        return False
    try:
        ask(["criu", "check"])
    except (OSError, ValueError):
        return False
    return True


def _why_not_apart() -> str:
    """Why crun cannot be given mounts of its own where it takes hybrid cgroups; empty if it can."""
    why = "crun does not support cgroups in hybrid mode (v1 controllers beside a cgroup2 mount)"

    def probe() -> None:
        nonlocal why
        try:
            with hybrid.without_controllers():
                if not hybrid.has_controllers():
                    why = ""
        except OSError as error:
            why += f", and cannot be shown others: {error.filename}: {error.strerror}"

    # A thread of its own, as what it shares with the process (working directory, umask) it does not share afterwards.
    thread = threading.Thread(target=probe)
    thread.start()
    thread.join()
    return why


def _ask(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PROBE_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"no answer in {_PROBE_TIMEOUT:.0f} s") from None
    if done.returncode:
        raise ValueError(f"exit status {done.returncode}")
    return done.stdout.decode("utf-8", "replace")


def features(binary: str) -> bytes | None:
    """The JSON document that `<binary> features` prints; None for a runtime without that command."""
    try:
        text = _ask([binary, "features"])
        msgspec.json.decode(text, type=dict)
    except (OSError, ValueError):
        return None
    return text.encode()
