"""What the daemon sets up about its own process before it starts anything."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import resource
import tempfile
from pathlib import Path

from orlop.daemon.config import Config

log = logging.getLogger(__name__)

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LOADER = ("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "GCONV_PATH", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME")

_TRIM_FROM, _MAP_FROM, _ARENAS = -1, -3, -8
"""Numbers of `mallopt`: bytes free at the heap's end from which on they are given back, bytes from which on an object
is mapped by itself, heaps."""
_UNIFIED = Path("/sys/fs/cgroup")


def harden() -> None:
    """A private umask, a PATH of absolute directories only, and no loader variables for what is started later."""
    os.umask(0o077)
    os.chdir("/")
    for name in _LOADER:
        os.environ.pop(name, None)
    parts = [part for part in os.environ.get("PATH", "").split(":") if part.startswith("/")]
    os.environ["PATH"] = ":".join(parts) or DEFAULT_PATH


def bound_memory() -> None:
    """Has the C library give back what was freed. To be called before there are threads, which get heaps of their own.

    A process of some ten threads that each hold a megabyte at times would keep as many megabytes for good.
    """
    with contextlib.suppress(AttributeError):  # a C library without these
        libc = ctypes.CDLL(None)
        for setting, value in ((_ARENAS, 1), (_TRIM_FROM, 2 << 20), (_MAP_FROM, 8 << 20)):
            libc.mallopt(setting, value)


def settle() -> None:
    """Once all is started: what start-up left is freed, and what stays is not looked through again for garbage."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def raise_file_limit() -> None:
    """Lifts the soft limit of open files to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def apply(config: Config) -> None:
    """The parts of the configuration that concern the process: temporary directory, OOM score, cgroup."""
    if config.temp:
        os.makedirs(config.temp, mode=0o700, exist_ok=True)
        os.environ["TMPDIR"] = config.temp
        tempfile.tempdir = config.temp
    if config.oom_score:
        try:
            Path("/proc/self/oom_score_adj").write_text(str(config.oom_score))
        except OSError as error:
            log.error("failed to set oom_score", extra={"fields": {"score": config.oom_score, "error": error}})
    if config.cgroup.path:
        _join(config.cgroup.path)


def _join(path: str) -> None:
    if not (_UNIFIED / "cgroup.controllers").exists():
        log.warning("cgroup.path needs cgroup v2; ignored", extra={"fields": {"path": path}})
        return
    group = Path(os.path.normpath(f"{_UNIFIED}/{path}"))
    if _UNIFIED not in group.parents:
        log.warning("cgroup.path leads out of the cgroup tree; ignored", extra={"fields": {"path": path}})
        return
    group.mkdir(parents=True, exist_ok=True)
    (group / "cgroup.procs").write_text(str(os.getpid()))
