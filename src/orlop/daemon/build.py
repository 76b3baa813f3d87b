"""What this build is called: name, version, revision, and where it keeps things unless told otherwise."""

from __future__ import annotations

import os

from orlop import __version__

NAME = "orlopd"
PACKAGE = "orlop"
VERSION = __version__
REVISION = os.environ.get("ORLOP_REVISION", "") or "unknown"

ROOT = "/var/lib/orlop"
STATE = "/run/orlop"
ADDRESS = "/run/orlop/orlop.sock"
CONFIG = "/etc/orlop/config.toml"
IMPORTS = "/etc/orlop/conf.d/*.toml"


def banner() -> str:
    return f"{NAME} {PACKAGE} {VERSION} {REVISION}"
