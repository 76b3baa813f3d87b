"""Checkpoints of running containers, into images and back, with the real `ctr` and the real CRIU."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from real_daemon import IMAGE, Archives, Daemon

from orlop.client import connect
from orlop.client.run import rootfs
from orlop.core import digest, media
from orlop.core.descriptor import Descriptor
from orlop.core.task import IO, NewTask
from orlop.errors import OrlopError

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]

COUNTER = "i=0; while true; do i=$((i+1)); echo $i > /count; echo $i; sleep 0.2; done"
AWK_TELLER = 'BEGIN { while (1) { print ++i; system("usleep 200000") } }'
TELLER = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.2; done"
REF = "example.org/checkpoint:1"


def why_no_criu() -> str:
    if shutil.which("criu") is None:
        return "criu is not installed"
    done = subprocess.run(["criu", "check"], capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else f"criu check: {(done.stderr or done.stdout).strip()[-200:]}"


@pytest.fixture
def criu() -> None:
    if why := why_no_criu():
        pytest.skip(why)


def running(daemon: Daemon) -> list[str]:
    return [
        line.split()[0] for line in daemon.ctr("tasks", "ls").stdout.splitlines()[1:] if line.split()[2] == "RUNNING"
    ]


def count(daemon: Daemon, name: str) -> int:
    pid = next(line.split()[1] for line in daemon.ctr("tasks", "ls").stdout.splitlines() if line.startswith(name))
    counted = Path(f"/proc/{pid}/root/count")
    while True:
        text = counted.read_text() if counted.exists() else ""
        if text.strip().isdigit():
            return int(text)
        assert name in running(daemon), daemon.log()


def wait_until(condition: Callable[[], bool], daemon: Daemon, name: str) -> None:
    while not condition():
        assert name in daemon.ctr("tasks", "ls", "-q").stdout.split(), daemon.log()


def end(daemon: Daemon, *names: str) -> None:
    for name in names:
        daemon.ctr("tasks", "rm", "-f", name, check=False)
        daemon.ctr("containers", "rm", name, check=False)
    daemon.ctr("images", "rm", REF, check=False)


def test_a_container_goes_on_where_its_checkpoint_was_made(criu: None, daemon: Daemon, name: str) -> None:
    restored = f"{name}-restored"
    daemon.ctr("run", "-d", "--null-io", IMAGE, name, "sh", "-c", COUNTER)
    try:
        wait_until(lambda: count(daemon, name) >= 5, daemon, name)
        daemon.ctr("containers", "checkpoint", "--rw", "--image", "--task", name, REF)
        assert name in running(daemon)  # it runs on
        daemon.ctr("tasks", "rm", "-f", name)
        daemon.ctr("containers", "rm", name)
        daemon.ctr("containers", "restore", "--rw", "--live", restored, REF)
        first = count(daemon, restored)
        assert first >= 5
        wait_until(lambda: count(daemon, restored) > first + 2, daemon, restored)
        # the exit of a restored process is learnt as any other
        daemon.ctr("tasks", "kill", "-s", "KILL", restored)
        wait_until(lambda: restored not in running(daemon), daemon, restored)
        assert "exit code 137" in daemon.ctr("tasks", "rm", restored).stderr
        work = daemon.work / "root/io.containerd.runtime.v2.task/default"
        assert not (work / restored).exists()
    finally:
        end(daemon, name, restored)


def test_a_task_can_end_with_its_checkpoint(criu: None, daemon: Daemon, name: str, tmp_path: Path) -> None:
    daemon.ctr("run", "-d", "--null-io", IMAGE, name, "sh", "-c", COUNTER)
    try:
        wait_until(lambda: count(daemon, name) >= 3, daemon, name)
        images = tmp_path / "images"
        images.mkdir()
        daemon.ctr("tasks", "checkpoint", "--exit", "--image-path", images, name)
        wait_until(lambda: name not in running(daemon), daemon, name)
        assert (images / "inventory.img").exists()
    finally:
        end(daemon, name)


def test_a_restored_container_writes_where_its_new_streams_lead(
    criu: None, daemon: Daemon, name: str, tmp_path: Path
) -> None:
    """The streams of the client are FIFOs of the host, which CRIU cannot keep; those of the restore replace them."""
    images, restored = tmp_path / "images", f"{name}-restored"
    command = ["ctr", "-a", daemon.address, "run", IMAGE, name, "sh", "-c", COUNTER]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        try:
            while client.stdout.readline() != "5\n":
                assert client.poll() is None, daemon.log()
            daemon.ctr("tasks", "checkpoint", "--exit", "--image-path", images, name)
            before = [int(line) for line in client.stdout]  # the exit ends the client too
            last = before[-1] if before else 5
        finally:
            client.kill()
            end(daemon, name)
    daemon.ctr("containers", "create", IMAGE, restored)
    fifos = [tmp_path / kind for kind in ("in", "out", "err")]
    for fifo in fifos:
        os.mkfifo(fifo)
    try:
        with pytest.raises(OrlopError, match="was a FIFO: it has to be"):
            asyncio.run(start_from(daemon, restored, images, IO(stdout=f"file://{tmp_path}/log")))
        daemon.ctr("tasks", "rm", "-f", restored)
        with open(os.open(fifos[1], os.O_RDONLY | os.O_NONBLOCK)) as reader:
            asyncio.run(start_from(daemon, restored, images, IO(*map(str, fifos))))
            os.set_blocking(reader.fileno(), True)  # the container has the other end
            first = int(reader.readline())
            assert first in (last + 1, last + 2)  # one may have been on its way
            assert int(reader.readline()) == first + 1
            # what it has now is outside too, and another checkpoint leaves it out again
            daemon.ctr("tasks", "checkpoint", "--image-path", tmp_path / "again", restored)
            assert restored in running(daemon)
    finally:
        end(daemon, restored)


def test_a_restored_container_appends_to_the_log_file_that_it_is_given(
    criu: None, daemon: Daemon, name: str, tmp_path: Path
) -> None:
    images, restored, old, new = tmp_path / "images", f"{name}-restored", tmp_path / "old", tmp_path / "new"
    daemon.ctr("run", "-d", "--log-uri", f"file://{old}", IMAGE, name, "sh", "-c", TELLER)
    try:
        wait_until(lambda: old.exists() and "5\n" in old.read_text(), daemon, name)
        daemon.ctr("tasks", "checkpoint", "--exit", "--image-path", images, name)
        wait_until(lambda: name not in running(daemon), daemon, name)
        written = old.read_text()
        new.write_text("what was here\n")
        daemon.ctr("containers", "create", IMAGE, restored)
        asyncio.run(start_from(daemon, restored, images, IO(stdout=f"file://{new}", stderr=f"file://{new}")))
        wait_until(lambda: new.read_text().count("\n") > 3, daemon, restored)
        here, *lines = new.read_text().splitlines()
        assert here == "what was here"
        assert int(lines[0]) == int(written.split()[-1]) + 1
        assert old.read_text() == written
    finally:
        end(daemon, name, restored)


def test_a_container_with_a_terminal_goes_on_at_the_terminal_of_its_restore(
    criu: None, daemon: Daemon, name: str, tmp_path: Path
) -> None:
    """Not by `ctr containers restore`: it asks for no terminal, which the runtime refuses, with containerd too."""
    images, restored = tmp_path / "images", f"{name}-restored"
    screens = [tmp_path / "first", tmp_path / "second"]
    for screen, container in zip(screens, (name, restored), strict=True):
        os.mkfifo(screen)
        daemon.ctr("containers", "create", "--tty", IMAGE, container, "awk", AWK_TELLER)
    try:
        with open(os.open(screens[0], os.O_RDWR)) as first:
            asyncio.run(start_from(daemon, name, None, IO(stdout=str(screens[0]), terminal=True)))
            while first.readline() != "5\n":
                assert name in running(daemon), daemon.log()
            daemon.ctr("tasks", "checkpoint", "--exit", "--image-path", images, name)
        with open(os.open(screens[1], os.O_RDWR)) as second:
            asyncio.run(start_from(daemon, restored, images, IO(stdout=str(screens[1]), terminal=True)))
            counted = int(second.readline())
            assert counted >= 6
            assert int(second.readline()) == counted + 1
    finally:
        end(daemon, name, restored)


async def start_from(daemon: Daemon, name: str, images: Path | None, io: IO) -> None:
    """Starts the task of container `name` with the streams `io`, from the checkpoint in `images` if there is one."""
    checkpoint = None
    if images is not None:
        checkpoint = Descriptor(media.CHECKPOINT, digest.of(b""), 0, annotations={"RestoreFromPath": str(images)})
    async with connect(daemon.address) as client:
        mounts = await rootfs(client, await client.containers.get(client.scope, name))
        new = NewTask(name, mounts, io, checkpoint=checkpoint)
        await client.tasks.create(client.scope, new)
        await client.tasks.start(client.scope, name)


def test_where_there_is_no_criu_the_reason_is_named(
    make_daemon: Callable[..., Daemon], archives: Archives, name: str
) -> None:
    why = why_no_criu()
    if not why:
        pytest.skip("criu works here")
    daemon = make_daemon()
    daemon.ctr("images", "import", archives.oci)
    daemon.ctr("run", "-d", "--null-io", IMAGE, name, "sleep", "600")
    done = daemon.ctr("tasks", "checkpoint", name, check=False)
    assert done.returncode
    assert "criu" in done.stderr.lower()
    assert name in running(daemon)
    end(daemon, name)
