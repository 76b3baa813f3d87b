"""Which OCI runtime runs containers on this host: crun where it works, else runc.

crun starts a container three times as fast, but old versions refuse a host whose cgroups are hybrid ("cgroups in
hybrid mode not supported") and specs newer than they know ("unknown version specified").
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import msgspec

log = logging.getLogger(__name__)

CRUN_SPEC = (1, 1)
"""The newest minor version of the runtime-spec that every crun of 1.x takes."""
_PROBE_TIMEOUT = 5.0


class CgroupMode(StrEnum):
    LEGACY = "legacy"
    HYBRID = "hybrid"
    UNIFIED = "unified"


def cgroup_mode(mountinfo: str) -> CgroupMode:
    """The mode that the text of `/proc/self/mountinfo` shows. A cgroup2 mount beside v1 controllers is hybrid."""
    v1 = v2 = False
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")[0]
        if not dash or len(fields) < 5 or not (fields[4] + "/").startswith("/sys/fs/cgroup/"):
            continue
        v1 = v1 or kind == "cgroup"
        v2 = v2 or kind == "cgroup2"
    if v1:
        return CgroupMode.HYBRID if v2 else CgroupMode.LEGACY
    return CgroupMode.UNIFIED


@dataclass(frozen=True, slots=True)
class OciRuntime:
    """The runtime for containers that name none; `reason` says why it is not crun."""

    name: str
    reason: str = ""

    def for_spec(self, spec: bytes | None) -> str:
        """The runtime that takes `spec`: runc where crun is too old for it."""
        if self.name != "crun" or spec is None:
            return self.name
        return self.name if spec_version(spec) <= CRUN_SPEC else "runc"


class _Versioned(msgspec.Struct):
    version: str = msgspec.field(default="", name="ociVersion")


def spec_version(spec: bytes) -> tuple[int, int]:
    """Major and minor of `ociVersion`; (0, 0) where it cannot be read, which the runtime will say better."""
    try:
        text = msgspec.json.decode(spec, type=_Versioned).version
    except msgspec.MsgspecError:
        return 0, 0
    match = re.match(r"(\d{1,4})\.(\d{1,4})", text, re.ASCII)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def detect(
    mountinfo: str,
    find: Callable[[str], str | None] = shutil.which,
    works: Callable[[str], str] | None = None,
) -> OciRuntime:
    """The default runtime of a host with these mounts. `works` gives an empty text, or why a binary does not work."""
    crun = find("crun")
    if crun is None:
        reason = "crun is not installed"
    elif cgroup_mode(mountinfo) is CgroupMode.HYBRID:
        reason = "crun does not support cgroups in hybrid mode (v1 controllers beside a cgroup2 mount)"
    else:
        reason = (works or _answers)(crun)
    chosen = OciRuntime("runc", reason) if reason else OciRuntime("crun")
    log.info("OCI runtime: %s%s", chosen.name, f" ({chosen.reason})" if chosen.reason else "")
    return chosen


def _answers(binary: str) -> str:
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, timeout=_PROBE_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{binary} --version: {error}"
    return f"{binary} --version: exit status {done.returncode}" if done.returncode else ""


def features(binary: str) -> bytes | None:
    """The JSON document that `<binary> features` prints; None for a runtime without that command."""
    try:
        done = subprocess.run([binary, "features"], capture_output=True, timeout=_PROBE_TIMEOUT, check=False)
        msgspec.json.decode(done.stdout, type=dict)
    except (OSError, subprocess.TimeoutExpired, msgspec.MsgspecError):
        return None
    return done.stdout if done.returncode == 0 else None
