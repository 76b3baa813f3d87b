"""Our shim under the stock containerd: `--runtime io.containerd.orlop.v2`."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from patience import patient
from real_daemon import IMAGE, Archives, end_leftovers
from stock_containerd import StockContainerd

from orlop.api.types.introspection_pb2 import RuntimeInfo

pytestmark = [
    pytest.mark.root,
    pytest.mark.ctr,
    pytest.mark.runtime,
    pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd (Debian package containerd)"),
]

RUNTIME = ("--runtime", "io.containerd.orlop.v2")


@pytest.fixture(scope="module")
def stock(archives: Archives) -> Iterator[StockContainerd]:
    daemon = StockContainerd(Path(tempfile.mkdtemp(prefix="orlop-", dir="/tmp")))
    daemon.start()
    try:
        daemon.ctr("images", "import", archives.oci)
        yield daemon
    finally:
        if daemon.process is not None and daemon.process.poll() is not None:
            daemon.start()
        daemon.remove_everything()
        daemon.stop()
        end_leftovers(daemon.work)
        shutil.rmtree(daemon.work, ignore_errors=True)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + patient(30)
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)


def state_of(daemon: StockContainerd, name: str) -> str:
    lines = daemon.ctr("tasks", "ls").stdout.splitlines()
    return next((line.split()[2] for line in lines if line.split()[0] == name), "")


def await_hearing(stock: StockContainerd, listener: IO[str]) -> None:
    """Makes events until one is heard, and reads what is heard of them."""
    for number in range(200):
        stock.ctr("namespaces", "label", "default", f"n={number}")
        if select.select([listener], [], [], 0.1)[0]:
            while f'"{number}"' not in listener.readline():
                pass
            return
    raise AssertionError("no event was heard")


def test_containers_run_and_their_ends_are_told(stock: StockContainerd, name: str) -> None:
    with subprocess.Popen(["ctr", "-a", stock.address, "events"], stdout=subprocess.PIPE, text=True) as listener:
        try:
            assert listener.stdout is not None
            await_hearing(stock, listener.stdout)
            command = ("sh", "-c", "echo out; exit 42")
            done = stock.ctr("run", "--rm", *RUNTIME, IMAGE, name, *command, check=False)
            assert (done.stdout, done.returncode) == ("out\n", 42)
            heard: list[tuple[str, dict[str, object]]] = []
            while not heard or heard[-1][0] != "/containers/delete":
                _, _, _, _, _, topic, payload = listener.stdout.readline().split(" ", 6)
                heard.append((topic, json.loads(payload)))
        finally:
            listener.kill()
    tasks = [(topic, event.get("exit_status")) for topic, event in heard if topic.startswith("/tasks/")]
    assert tasks == [("/tasks/create", None), ("/tasks/start", None), ("/tasks/exit", 42), ("/tasks/delete", 42)]


def test_running_and_ended_containers_survive_a_restart_of_containerd(stock: StockContainerd, name: str) -> None:
    ended = f"{name}-ended"
    stock.ctr("run", "-d", *RUNTIME, IMAGE, name, "sleep", "600")
    stock.ctr("run", "-d", *RUNTIME, IMAGE, ended, "sh", "-c", "while [ ! -e /end ]; do sleep 0.1; done; exit 9")
    try:
        assert stock.ctr("tasks", "exec", "--exec-id", "e", name, "echo", "before").stdout == "before\n"
        # so that it ends while nobody is there
        stock.ctr("tasks", "exec", "--exec-id", "e", ended, "sh", "-c", "(sleep 1; touch /end) >/dev/null 2>&1 &")
        stock.stop(signal.SIGKILL)
        stock.start()
        assert state_of(stock, name) == "RUNNING"
        assert stock.ctr("tasks", "exec", "--exec-id", "e", name, "echo", "after").stdout == "after\n"
        assert name in stock.ctr("tasks", "metrics", name).stdout
        wait_for(lambda: state_of(stock, ended) == "STOPPED", "the end of a container")
        assert "exit code 9" in stock.ctr("tasks", "rm", ended).stderr
        stock.ctr("tasks", "kill", "-s", "KILL", name)
        wait_for(lambda: state_of(stock, name) == "STOPPED", "the end of the other container")
        assert "exit code 137" in stock.ctr("tasks", "rm", name).stderr
    finally:
        for id in (name, ended):
            stock.ctr("tasks", "rm", "-f", id, check=False)
            stock.ctr("containers", "rm", id, check=False)
    assert not list((stock.work / "state").glob("io.containerd.runtime.v2.task/*/*"))


def test_a_killed_shim_is_cleared_away_by_our_delete(stock: StockContainerd, name: str) -> None:
    stock.ctr("run", "-d", *RUNTIME, IMAGE, name, "sleep", "600")
    pid = next(int(line.split()[1]) for line in stock.ctr("tasks", "ls").stdout.splitlines() if line.startswith(name))
    shim = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(shim, signal.SIGKILL)
    wait_for(lambda: state_of(stock, name) == "", "containerd takes note of the shim's end")
    wait_for(lambda: not Path(f"/proc/{pid}/exe").exists(), "the container's process is killed")
    wait_for(lambda: not list((stock.work / "state").glob(f"*/*/{name}")), "the bundle goes")
    assert str(stock.work) not in Path("/proc/self/mounts").read_text()
    stock.ctr("containers", "rm", name)


def test_info_and_version_are_told_without_a_namespace() -> None:
    binary = Path(sys.executable).parent / "containerd-shim-orlop-v2"
    info = RuntimeInfo.FromString(subprocess.run([binary, "-info"], input=b"", capture_output=True, check=True).stdout)
    assert info.name == "io.containerd.orlop.v2"
    assert info.version.version
    assert subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stdout.startswith(binary.name)
