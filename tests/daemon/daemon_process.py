"""An `orlopd` of its own for a test: started, asked, ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self


class DaemonProcess:
    """`orlopd` under `directory`; entering waits until it says READY=1."""

    def __init__(self, directory: Path, *, config: str = "", path: str = "", flags: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.address = str(directory / "o.sock")
        self.root = directory / "root"
        self.state = directory / "state"
        self.log = directory / "log"
        self.seconds = 0.0
        self.said: list[str] = []
        self._config = directory / "config.toml"
        self._config.write_text(
            f"version = 4\n{config}\n[plugins.'io.containerd.internal.v1.opt']\npath = '{directory}/opt'\n"
        )
        self._path = path
        self._flags = flags
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def command(self) -> list[str]:
        arguments = ["-c", str(self._config), "--root", str(self.root), "--state", str(self.state), "-a", self.address]
        return [sys.executable, "-m", "orlop.daemon.main", *arguments, *self._flags]

    def __enter__(self) -> Self:
        notify = self.directory / "notify"
        notify.unlink(missing_ok=True)
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(notify))
        self._notified.settimeout(60)
        began = time.monotonic()
        environment = {**os.environ, "NOTIFY_SOCKET": str(notify), "PYTHONPATH": self._path}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command(), stderr=log, env=environment)
        self._await("READY=1")
        self.seconds = time.monotonic() - began
        return self

    def _await(self, word: str) -> None:
        while word not in self.said:
            self.said.append(self._notified.recv(4096).decode())

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends the signal `number`; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()  # so that it ends its fork server too
            self.process.wait()
        self._notified.setblocking(False)
        try:
            while True:
                self.said.append(self._notified.recv(4096).decode())
        except BlockingIOError:
            self._notified.close()

    def ctr(self, *arguments: str, check: bool = True) -> str:
        answer = subprocess.run(
            ["ctr", "-a", self.address, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or answer.returncode == 0, answer.stderr + self.log.read_text()
        return answer.stdout
