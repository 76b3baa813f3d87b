"""A real daemon process for tests, and the real `ctr` pointed at it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import busybox_image
import oci_runtime
import patience
from patience import patient

IMAGE = busybox_image.NAME


@dataclass
class Daemon:
    """An `orlopd` with its own directories; `ctr` talks to it in the namespace `namespace`."""

    work: Path
    arguments: list[str] = field(default_factory=list)
    namespace: str = "default"
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return str(self.work / "o.sock")

    def start(self) -> None:
        """Starts the daemon and waits until it answers."""
        log = (self.work / "log").open("ab")
        text = oci_runtime.configuration() + patience.configuration()
        if text and "--config" not in self.arguments:
            config = self.work / "test-host.toml"
            config.write_text(f"version = 4\n{text}")
            self.arguments += ["--config", str(config)]
        self.process = subprocess.Popen(
            [
                Path(sys.executable).parent / "orlopd",
                *("--root", self.work / "root", "--state", self.work / "state", "--address", self.address),
                *self.arguments,
            ],
            stderr=log,
            stdout=log,
            env=os.environ | self.environment,
        )
        self.await_answer()

    def await_answer(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + patient(30)
        while subprocess.run(["ctr", "-a", self.address, "version"], capture_output=True).returncode:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the daemon does not answer:\n{self.log()}")

    def stop(self, signal_: signal.Signals = signal.SIGTERM) -> int:
        """Ends the daemon; returns its exit status. Containers go on."""
        assert self.process is not None
        self.process.send_signal(signal_)
        return self.process.wait(patient(30))

    def log(self) -> str:
        return (self.work / "log").read_text(errors="replace")[-6000:]

    def ctr(
        self,
        *arguments: str | Path,
        stdin: bytes = b"",
        check: bool = True,
        timeout: float = 60,
        program: str = "ctr",
    ) -> subprocess.CompletedProcess[str]:
        """Runs `ctr` with these arguments. With `check`, a failure shows what it and the daemon said."""
        done = subprocess.run(
            [program, "-a", self.address, "-n", self.namespace, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            timeout=patient(timeout),
            env=os.environ | {"CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS": "1"},
        )
        result = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        if check and done.returncode:
            raise AssertionError(f"{result.args}: {done.returncode}\n{result.stdout}{result.stderr}\n{self.log()}")
        return result

    def remove_everything(self) -> None:
        """Ends and removes the containers of every namespace, whatever state a failed test left them in."""
        for namespace in self.ctr("namespaces", "ls", "-q", check=False).stdout.split():
            for task in self.in_namespace(namespace, "tasks", "ls", "-q"):
                self.in_namespace(namespace, "tasks", "rm", "-f", task)
            for container in self.in_namespace(namespace, "containers", "ls", "-q"):
                self.in_namespace(namespace, "containers", "rm", container)

    def in_namespace(self, namespace: str, *arguments: str) -> list[str]:
        command = ["ctr", "-a", self.address, "-n", namespace, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=patient(60)).stdout.split()


@dataclass
class Archives:
    oci: Path
    docker: Path


def end_leftovers(work: Path) -> None:
    """Ends what a failed test left under `work`: its fork server and shims (by their command line), its mounts."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes() + os.readlink(entry / "cwd").encode()
            except OSError:
                continue
            if str(work).encode() in command:
                os.kill(int(entry.name), signal.SIGKILL)
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed(mounts):
        if mount.startswith(str(work)):
            subprocess.run(["umount", "-l", mount], check=False)
