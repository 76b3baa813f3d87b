"""Images, information and events from the command line, with a real daemon."""

from __future__ import annotations

import gzip
import json
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
        assert re.fullmatch(
            rf"docker\.io/library/{name}:1 +[0-9a-f]{{12}} +linux/\w+ +[0-9.]+ [KM]iB +\d+ seconds?", row
        )
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

    def test_an_image_is_given_more_names_and_others_are_kept(self, orlop: Orlop, name: str) -> None:
        orlop("import", "-q", "-", stdin=busybox_image.oci_layout(f"{name}:1"))
        orlop("import", "-q", "-", stdin=busybox_image.docker_save(f"{name}:2"))
        assert orlop("tag", f"{name}:1", f"{name}:3", f"example.org/{name}").stdout == f"{name}:3\nexample.org/{name}\n"
        refused = orlop("image", "tag", f"{name}:1", f"{name}:2", status=1)
        assert re.fullmatch(
            rf"orlop: image 'docker.io/library/{name}:2' is [0-9a-f]{{12}} now; --force gives the name away\n",
            refused.stderr,
        )
        orlop("tag", "--force", f"{name}:1", f"{name}:2")
        removed = orlop("rmi", f"{name}:3")
        assert "its content stays: it is also docker.io/library/" in removed.stderr
        assert orlop("rmi", "-q", f"{name}:1", f"{name}:2", f"example.org/{name}").stderr == ""

    def test_images_are_narrowed_by_name_and_filter(self, orlop: Orlop, name: str) -> None:
        orlop("import", "-q", "-", stdin=busybox_image.oci_layout(f"{name}:1"))
        orlop("tag", f"{name}:1", f"example.org/team/{name}:2")
        full = f"docker.io/library/{name}:1"
        for arguments in ([name], [f"{name}:1"], [full], ["-f", f"name=={full}"], [f"{name}*"]):
            assert orlop("images", "-q", *arguments).stdout == f"{full}\n", arguments
        assert orlop("images", "-q", f"*/team/{name}").stdout == f"example.org/team/{name}:2\n"
        (one,) = json.loads(orlop("image", "ls", "--json", name).stdout)
        assert one["name"] == full
        assert one["size"] > 500_000
        assert one["digest"] in orlop("images", "--digests", name).stdout
        assert "filters: parse error" in orlop("images", "-f", "==", status=1).stderr
        orlop("rmi", name + ":1", f"example.org/team/{name}:2")

    def test_a_name_that_is_nearly_one_is_told(self, orlop: Orlop) -> None:
        done = orlop("rmi", "busybax", status=1)
        assert done.stderr == 'orlop: image "docker.io/library/busybax:latest": not found\nIs it busybox:latest?\n'

    def test_who_removes_an_image_hears_of_its_containers(self, orlop: Orlop, name: str) -> None:
        image = f"docker.io/library/{name}:1"
        orlop("import", "-q", "-", stdin=busybox_image.oci_layout(image))
        orlop("run", "-d", image, name, "sleep", "600")
        assert f"still run by {name}, which keep their file systems" in orlop("rmi", image).stderr
        assert orlop("exec", name, "echo", "here").stdout == "here\n"
        orlop("rm", "-f", name)

    def test_an_image_is_inspected_and_its_history_shown(self, orlop: Orlop) -> None:
        said = orlop("image", "inspect", "busybox").stdout
        assert re.search(r"^Name: +docker\.io/library/busybox:latest$", said, re.MULTILINE)
        assert re.search(r"^  Command: +/bin/sh$", said, re.MULTILINE)
        assert re.search(r"^  1 +[0-9.]+ \w+ +gzip +[0-9a-f]{12} +[0-9a-f]{12} +here +overlayfs$", said, re.MULTILINE)
        (one,) = json.loads(orlop("image", "inspect", "--json", "busybox").stdout)
        (manifest,) = one["manifests"]
        assert manifest["complete"] is True
        assert manifest["image"]["config"]["Cmd"] == ["/bin/sh"]
        assert manifest["layers"][0]["snapshotter"] == "overlayfs"
        assert one["missing"] == []
        assert re.search(
            r"^2026-01-01T00:00:00Z .* busybox_image.py$", orlop("image", "history", "busybox").stdout, re.M
        )
        (step,) = json.loads(orlop("image", "history", "--json", "busybox").stdout)
        assert step["layer"] == manifest["layers"][0]["digest"]
        refused = orlop("image", "history", "--platform", "linux/s390x", "busybox", status=1).stderr
        assert re.search(r"no manifest for linux/s390x is here \(has linux/\w+\): not found", refused)

    def test_images_are_a_tree_of_layers(self, orlop: Orlop, name: str) -> None:
        orlop("image", "convert", "-q", "busybox", f"{name}:1", "--uncompressed")
        orlop("tag", f"{name}:1", f"{name}:2")
        tree = orlop("image", "tree").stdout
        assert re.search(rf"^[├└]─ docker\.io/library/{name}:1  .*, frees 0 B$", tree, re.MULTILINE)
        orlop("rmi", "-q", f"{name}:2")
        document = json.loads(orlop("image", "tree", "--json").stdout)
        alone = {image["name"]: image["frees"] for image in document["images"]}
        assert alone[f"docker.io/library/{name}:1"] > 1_000_000
        assert any(f"docker.io/library/{name}:1" in layer["images"] for layer in document["layers"])
        orlop("rmi", "-q", f"{name}:1")

    def test_an_image_is_converted_and_runs(self, orlop: Orlop, name: str) -> None:
        made = orlop("image", "convert", "busybox", f"{name}:zstd", "--zstd")
        assert re.fullmatch(rf"docker\.io/library/{name}:zstd  sha256:[0-9a-f]{{64}}\n", made.stdout)
        assert re.search(r"^[0-9a-f]{12}: done$", made.stderr, re.MULTILINE)
        again = orlop("image", "convert", "-q", "busybox", f"{name}:zstd", "--zstd")
        assert (again.stdout.strip(), again.stderr) == (made.stdout.split()[1], "")
        (one,) = json.loads(orlop("image", "inspect", "--json", f"{name}:zstd").stdout)
        assert one["manifests"][0]["layers"][0]["mediaType"].endswith("tar+zstd")
        assert orlop("run", "--rm", f"{name}:zstd", name, "echo", "here").stdout == "here\n"
        same = orlop("image", "convert", f"{name}:zstd", f"{name}:same", "--zstd")
        assert "nothing to convert" in same.stderr
        assert "(has linux/" in orlop("image", "convert", "busybox", "x", "--platform", "s390x", status=1).stderr
        orlop("rmi", "-q", f"{name}:zstd", f"{name}:same")

    def test_what_images_say_cannot_move_a_terminal(self, orlop: Orlop, name: str) -> None:
        hostile = f"{name}\x1b]0;owned\x07"
        orlop.daemon.ctr("images", "tag", "docker.io/library/busybox:latest", hostile)
        for arguments in (["images"], ["images", "-q"], ["image", "tree"], ["image", "inspect", hostile]):
            said = orlop(*arguments).stdout
            assert "\x1b" not in said
            assert name in said
        orlop("rmi", hostile)

    def test_a_namespace_has_images_of_its_own(self, orlop: Orlop, name: str) -> None:
        assert orlop("-n", name, "images", "-q").stdout == ""

    def test_version_and_info_tell_of_the_daemon(self, orlop: Orlop) -> None:
        assert orlop("version").stdout.startswith(f"Client: orlop {__version__}\nServer: 2.4.0+orlop.{__version__}")
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
    "command",
    [
        "",
        "run",
        "ps",
        "exec",
        "kill",
        "rm",
        "import",
        "images",
        "rmi",
        "tag",
        "pull",
        "login",
        "logout",
        "events",
        "info",
        "image",
    ]
    + [
        f"image {verb}"
        for verb in (
            "pull",
            "push",
            "save",
            "load",
            "import",
            "ls",
            "rm",
            "tag",
            "inspect",
            "history",
            "tree",
            "convert",
        )
    ],
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
