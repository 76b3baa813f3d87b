"""A real containerd for tests, with our shim on its path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from real_daemon import Daemon


@dataclass
class StockContainerd(Daemon):
    """Debian's containerd with its own directories; `ctr` talks to it as to ours."""

    def start(self) -> None:
        config = self.work / "config.toml"
        config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        program = shutil.which("containerd")
        assert program is not None
        log = (self.work / "log").open("ab")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.process = subprocess.Popen(
            [
                program,
                *("--config", config, "--root", self.work / "root", "--state", self.work / "state"),
                *("--address", self.address),
            ],
            stderr=log,
            stdout=log,
            env=os.environ | {"PATH": path},
        )
        self.await_answer()
