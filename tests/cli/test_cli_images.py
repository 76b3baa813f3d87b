"""Images, information and events from the command line, with a real daemon."""

from __future__ import annotations

import gzip
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import busybox_image
import pytest

from orlop import __version__

Orlop = Any
live = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]
PROGRAM = str(Path(sys.executable).parent / "orlop")


def alone(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`orlop` where there is no daemon."""
    return subprocess.run(
        [PROGRAM, "-a", "/nonexistent/o.sock", *arguments], capture_output=True, text=True, timeout=60
    )


class TestWithADaemon:
    pytestmark = live

    def test_images_are_imported_listed_and_removed(self, orlop: Orlop, name: str, tmp_path: Path) -> None:
        archive = tmp_path / "docker.tar.gz"
        archive.write_bytes(gzip.compress(busybox_image.docker_save(f"{name}:1")))
        done = orlop("import", archive)
        assert re.fullmatch(rf"docker\.io/library/{name}:1  sha256:[0-9a-f]{{64}}\n", done.stdout)
        row = next(line for line in orlop("images").stdout.splitlines() if name in line)
        assert re.fullmatch(rf"docker\.io/library/{name}:1 +[0-9a-f]{{12}} +linux/\w+ +[0-9.]+ MiB +\d+ seconds?", row)
        assert f"docker.io/library/{name}:1" in orlop("images", "-q").stdout.split()
        assert orlop("rmi", f"{name}:1").stdout == f"{name}:1\n"
        assert name not in orlop("images", "-q").stdout
        assert "not found" in orlop("rmi", f"{name}:1", status=1).stderr

    def test_an_archive_comes_from_standard_input_and_waits_to_be_unpacked(self, orlop: Orlop, name: str) -> None:
        image = f"example.org/{name}:1"
        done = orlop("import", "-q", "--no-unpack", "-", stdin=busybox_image.oci_layout(image))
        assert done.stdout == f"{image}\n"
        assert orlop("run", "--rm", image, name, "echo", "unpacked").stdout == "unpacked\n"
        orlop("rmi", image)

    def test_what_is_no_archive_is_refused(self, orlop: Orlop, tmp_path: Path) -> None:
        (tmp_path / "bad").write_bytes(b"no tar" * 1000)
        assert orlop("import", tmp_path / "bad", status=1).stderr.startswith("orlop: ")
        missing = orlop("import", tmp_path / "nosuch", status=1)
        assert missing.stderr == f"orlop: cannot read {tmp_path}/nosuch: No such file or directory\n"

    def test_a_namespace_has_images_of_its_own(self, orlop: Orlop, name: str) -> None:
        assert orlop("-n", name, "images", "-q").stdout == ""

    def test_version_and_info_tell_of_the_daemon(self, orlop: Orlop) -> None:
        assert orlop("version").stdout.startswith(f"Client: orlop {__version__}\nServer: {__version__}")
        info = orlop("info").stdout
        assert f"Process: {orlop.daemon.process.pid}\n" in info
        assert re.search(r"^snapshotter\.v1 +overlayfs +ok ", info, re.MULTILINE)

    def test_events_are_shown_until_an_interrupt(self, orlop: Orlop, name: str) -> None:
        process = orlop.start("events", "topic~=|^/tasks/|")
        assert process.stdout is not None
        lines: list[bytes] = []
        orlop("run", "-d", "busybox", name, "sleep", "600")
        # There is no answer that says that it listens, so something happens until it is seen.
        import select

        while not select.select([process.stdout], [], [], 0)[0]:
            orlop("exec", name, "true")
        lines.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        orlop("rm", "-f", name)
        assert process.returncode == 130
        assert re.fullmatch(rb"\S+Z default /tasks/\S+ \{.*\}\n", lines[0])

    def test_a_bad_filter_of_events_is_told(self, orlop: Orlop) -> None:
        assert "filters: parse error" in orlop("events", "==", status=1).stderr


def test_a_daemon_that_does_not_run_is_told_with_what_to_do() -> None:
    done = alone("version")
    assert done.returncode == 1
    assert done.stderr == (
        "orlop: cannot reach the daemon at /nonexistent/o.sock: no such file or directory\n"
        "Is the daemon running? Start it with 'orlopd', or name its socket with --address.\n"
    )


def test_mistakes_in_the_command_have_status_2() -> None:
    for arguments in (["nosuch"], ["run"], ["exec", "x"], ["kill"], ["run", "--cpus", "many", "image", "id"]):
        done = alone(*arguments)
        assert done.returncode == 2
        assert "Usage: orlop" in done.stderr


@pytest.mark.parametrize(
    "command", ["", "run", "ps", "exec", "kill", "rm", "import", "images", "rmi", "events", "info"]
)
def test_every_command_explains_itself_without_a_client(command: str) -> None:
    script = (
        "import sys; from orlop.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: sys.exit(end.code or 'grpc' in sys.modules)"
    )
    arguments = [*command.split(), "--help"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")
