"""The OCI runtime that tests use: this host's, or the one that `ORLOP_TEST_OCI_RUNTIME` names (`runc`, `crun`)."""

from __future__ import annotations

import functools
import os

from orlop.runtime import host

VARIABLE = "ORLOP_TEST_OCI_RUNTIME"


@functools.cache
def chosen() -> host.OciRuntime:
    return host.detect(os.environ.get(VARIABLE) or host.AUTOMATIC)


def configuration() -> str:
    """What a daemon's configuration needs for it; empty where nothing is chosen."""
    choice = os.environ.get(VARIABLE)
    return f'[plugins."io.containerd.runtime.v2.task"]\noci_runtime = "{choice}"\n' if choice else ""
