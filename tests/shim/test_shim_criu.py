"""What CRIU is told of standard streams outside a container. With the real CRIU: `interop/test_ctr_checkpoint.py`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from orlop.errors import InvalidArgument
from orlop.shim import criu

NAME = "file[1b:98409a]"


@pytest.mark.root
def test_streams_outside_are_the_fifos_and_files_that_no_mount_of_the_process_leads_to(tmp_path: Path) -> None:
    fifo, log = tmp_path / "fifo", tmp_path / "log"
    os.mkfifo(fifo, 0o600)
    with log.open("wb") as output, open(os.open(fifo, os.O_RDWR), "rb") as both:
        # The mounts of a new namespace are others than the one that the files were opened by.
        command = ["unshare", "--mount", "sh", "-c", "(echo ready >&2); exec sleep 600"]
        with subprocess.Popen(command, stdin=both, stdout=output, stderr=subprocess.PIPE) as process:
            try:
                assert process.stderr is not None
                assert process.stderr.readline() == b"ready\n"
                found = criu.streams_outside(process.pid)  # the pipe of stderr is the runtime's to keep
            finally:
                process.kill()
    inodes = {number: f":{path.stat().st_ino:x}]" for number, path in enumerate((fifo, log))}
    assert sorted(found.values()) == [(0, "FIFO", 0o600), (1, "file", 0o644)]
    assert all(name.endswith(inodes[number]) for name, (number, *_) in found.items())


def test_a_restore_takes_over_what_its_checkpoint_left_out(tmp_path: Path) -> None:
    images, path, before = tmp_path / "images", tmp_path / "criu.conf", tmp_path / "before"
    before.write_text("log-file other.log")
    environment = {b"CRIU_CONFIG_FILE": os.fsencode(before)}
    assert criu.leaving_out({NAME: (1, "FIFO", 0o700)}, str(images), str(path), environment) == {
        b"CRIU_CONFIG_FILE": os.fsencode(path)
    }
    assert path.read_text() == f"log-file other.log\nexternal {NAME}\n"
    outlet, inlet = os.pipe()
    try:
        criu.taking_over(str(images), {1: inlet}, str(path), {})
        assert path.read_text() == f"inherit-fd fd[1]:{NAME}\n"
        assert os.fstat(inlet).st_mode & 0o777 == 0o700
        with before.open() as file, pytest.raises(InvalidArgument, match="descriptor 1 was a FIFO"):
            criu.taking_over(str(images), {1: file.fileno()}, str(path), {})
        with pytest.raises(InvalidArgument, match="descriptor 1 was a FIFO"):
            criu.taking_over(str(images), {0: outlet}, str(path), {})
    finally:
        os.close(outlet)
        os.close(inlet)


def test_a_checkpoint_of_somebody_else_needs_no_streams(tmp_path: Path) -> None:
    assert criu.taking_over(str(tmp_path), {}, str(tmp_path / "criu.conf"), {b"A": b"b"}) == {b"A": b"b"}
    assert not (tmp_path / "criu.conf").exists()


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "[]",
        "[" * 2000,
        json.dumps({f"{NAME}\naction-script /bin/evil": [1, "FIFO", 0o700]}),
        json.dumps({NAME: [3, "FIFO", 0o700]}),
        json.dumps({NAME: ["1\naction-script /bin/evil", "FIFO", 0o700]}),
        json.dumps({NAME: 1}),
        json.dumps({NAME: [True, "FIFO", 0o700]}),
        json.dumps({NAME: [1, ["FIFO"], 0o700]}),
    ],
)
def test_streams_that_are_none_are_refused_before_criu_reads_them(tmp_path: Path, content: str) -> None:
    (tmp_path / criu.STREAMS_FILE).write_text(content)
    with pytest.raises(InvalidArgument, match="standard streams"):
        criu.taking_over(str(tmp_path), {}, str(tmp_path / "criu.conf"), {})
    assert not (tmp_path / "criu.conf").exists()
