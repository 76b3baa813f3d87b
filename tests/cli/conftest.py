"""A daemon of its own for each test process, and `orlop` pointed at it."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import busybox_image
import pytest
from real_daemon import Daemon, end_leftovers

_numbers = itertools.count()
_PROGRAM = str(Path(sys.executable).parent / "orlop")


class CommandLine:
    """`orlop` for the daemon at `address`."""

    def __init__(self, daemon: Daemon, archive: Path) -> None:
        self.daemon, self.address, self.archive = daemon, daemon.address, archive
        self.environment = os.environ | {"ORLOP_ADDRESS": self.address}

    def __call__(
        self, *arguments: str | Path, stdin: bytes = b"", status: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command. A status other than `status` (None: any) fails, with what the command and the daemon said."""
        done = subprocess.run(
            self.command(*arguments), input=stdin, capture_output=True, timeout=60, env=self.environment
        )
        result = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        if status is not None and done.returncode != status:
            raise AssertionError(f"{result}\n{self.daemon.log()}")
        for slip in ("Traceback", "was destroyed", "never retrieved"):
            assert slip not in result.stderr, result.stderr
        return result

    def start(self, *arguments: str | Path, **options: object) -> subprocess.Popen[bytes]:
        """Runs a command beside the test."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen(self.command(*arguments), env=self.environment, **options)  # type: ignore[call-overload,no-any-return]

    def command(self, *arguments: str | Path) -> list[str]:
        return [_PROGRAM, *map(str, arguments)]

    def is_gone(self, id: str) -> bool:
        """Whether nothing is left of a container."""
        return (
            id not in self("ps", "-aq").stdout.split()
            and id not in self.daemon.ctr("snapshots", "ls").stdout
            and not list(Path(self.daemon.work / "state").glob(f"*/*/{id}"))
            and not list(Path("/run/orlop/fifo").glob(f"*/{id}-*"))
        )


@pytest.fixture(scope="session")
def shared_orlop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    archive = tmp_path_factory.mktemp("archive") / "oci.tar"
    archive.write_bytes(busybox_image.oci_layout())
    # A short path: a socket's may have 104 characters. Session directories of pytest are longer.
    daemon = Daemon(Path(tempfile.mkdtemp(prefix="orlop-", dir="/tmp")))
    try:
        daemon.start()
        orlop = CommandLine(daemon, archive)
        orlop("import", archive)
        yield orlop
        daemon.remove_everything()
        daemon.stop()
    finally:
        end_leftovers(daemon.work)
        shutil.rmtree(daemon.work, ignore_errors=True)


@pytest.fixture
def orlop(shared_orlop: CommandLine) -> CommandLine:
    return shared_orlop


@pytest.fixture
def name() -> str:
    """A container id that no other test of this host uses."""
    return f"o{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def container(orlop: CommandLine, name: str) -> Iterator[str]:
    """A running container that sleeps."""
    orlop("run", "-d", "busybox", name, "sleep", "600")
    yield name
    orlop("rm", "-f", name, status=None)
