from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from daemon_process import DaemonProcess

from orlop.daemon import build

pytestmark = pytest.mark.root

EXAMPLE = Path(__file__).parents[1] / "example_plugin"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_starts_tells_the_service_manager_and_ends_on_sigterm(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        print(f"started in {daemon.seconds:.3f} s")
        assert (mode(daemon.root), mode(daemon.state)) == (0o700, 0o711)
        assert mode(daemon.root / "tmpmounts") == 0o700
        assert stat.S_IMODE(os.stat(daemon.address).st_mode) == 0o660
        assert stat.S_IMODE(os.stat(f"{daemon.address}.ttrpc").st_mode) == 0o660
        assert daemon.end() == 0
    assert daemon.said == ["READY=1", "STOPPING=1"]
    assert not Path(daemon.address).exists()
    assert not Path(f"{daemon.address}.ttrpc").exists()


def test_a_second_daemon_is_refused_and_told_the_pid_of_the_first(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        for other in (daemon.root, tmp_path / "link"):
            if not other.exists():
                other.symlink_to(daemon.root)
            command = [*daemon.command(), "--root", str(other), "--state", str(tmp_path / "state2")]
            second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert second.returncode == 1
            assert f"is in use by another daemon, pid {daemon.process.pid}" in second.stderr
        command = [*daemon.command(), "--root", str(tmp_path / "root2")]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (second.returncode, f"pid {daemon.process.pid}" in second.stderr) == (1, True)


def test_a_killed_daemon_starts_again_over_its_stale_sockets(tmp_path: Path) -> None:
    for _ in range(3):
        with DaemonProcess(tmp_path) as daemon:
            assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
        assert Path(daemon.address).exists()
    with DaemonProcess(tmp_path) as daemon:
        assert daemon.end(signal.SIGINT) == 0


def test_sigusr1_shows_the_stacks_of_threads_and_tasks(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with DaemonProcess(tmp_path, config=f"temp = '{tmp_path}/t'") as daemon:
        daemon.process.send_signal(signal.SIGUSR1)
        assert daemon.end() == 0
        text = (tmp_path / "t" / f"orlop.{daemon.process.pid}.stacks.log").read_text()
    assert "thread MainThread" in text
    assert "in Daemon.wait" in text
    assert "stacks of threads and tasks" in daemon.log.read_text()


def test_a_required_plugin_that_is_missing_stops_the_start(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path, config="required_plugins = ['a.b']")
    ended = subprocess.run(daemon.command(), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "orlopd: required plugin [a.b] not included" in ended.stderr


def test_a_missing_configuration_file_that_was_named_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orlop.daemon.main", "-c", str(tmp_path / "none")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (1, f"orlopd: open {tmp_path}/none: no such file or directory\n")


def test_version_is_told() -> None:
    command = [sys.executable, "-m", "orlop.daemon.main", "--version"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.split() == ["orlopd", "orlop", build.VERSION, build.REVISION]


def test_metrics_are_served_where_an_address_is_set(tmp_path: Path) -> None:
    import re
    import urllib.error
    import urllib.request

    with DaemonProcess(
        tmp_path, config="[plugins.'io.containerd.server.v1.metrics']\naddress = '127.0.0.1:0'"
    ) as daemon:
        (port,) = re.findall(r'serving\.\.\." address="?127\.0\.0\.1:(\d+)', daemon.log.read_text())
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/metrics") as answer:
            text = answer.read().decode()
        assert f'containerd_build_info_total{{version="{build.VERSION}",revision="{build.REVISION}"}} 1' in text
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/")


def test_oci_hook_fills_templates_and_becomes_the_hook(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"root": {"path": "rootfs"}}')
    state = {"id": "x", "pid": 7, "status": "created", "bundle": str(tmp_path), "annotations": {"a.b": "c"}}
    words = ["{{id}}", "{{pid}}", "{{rootfs}}", '{{annotation "a.b"}}', "{{ status }}"]
    command = [sys.executable, "-m", "orlop.daemon.main", "oci-hook", "/bin/echo", *words]
    told = subprocess.run(command, input=json.dumps(state), capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout == f"x 7 {tmp_path}/rootfs c created\n"


@pytest.mark.ctr
def test_ctr_sees_version_identity_and_plugins(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        first = daemon.ctr("version")
        assert f"Version:  2.4.0+orlop.{build.VERSION}\n" in first
        identity = daemon.root / "io.containerd.grpc.v1.introspection" / "uuid"
        assert f"UUID: {identity.read_text()}" in first
        assert (mode(identity), mode(identity.parent)) == (0o644, 0o700)
        listed = daemon.ctr("plugins", "ls")
        assert [line.split()[-1] for line in listed.splitlines() if " exchange " in line] == ["ok"]
        assert [line.split()[-1] for line in listed.splitlines() if " grpc-tcp " in line] == ["skip"]
        assert "skip plugin: debug has no address configured" in daemon.ctr("plugins", "ls", "-d", "id==debug")
        daemon.end()
    with DaemonProcess(tmp_path) as daemon:
        assert daemon.ctr("version").split("UUID:")[1].split()[0] == identity.read_text()


@pytest.mark.ctr
def test_ctr_sees_events_that_were_published(tmp_path: Path) -> None:
    from orlop.api.events import task_pb2
    from orlop.core.wire.common import any_of, pack

    payload = any_of(pack(task_pb2.TaskStart(container_id="redis", pid=7)))
    assert payload is not None
    with DaemonProcess(tmp_path) as daemon:
        watcher = subprocess.Popen(["ctr", "-a", daemon.address, "events"], stdout=subprocess.PIPE, text=True)
        assert watcher.stdout is not None
        os.set_blocking(watcher.stdout.fileno(), False)
        try:
            line = ""
            while not line:  # until the watcher has subscribed; each round takes as long as a publishing process
                publish = [sys.executable, "-m", "orlop.daemon.main", "-a", daemon.address, "publish"]
                subprocess.run(
                    [*publish, "--namespace", "ns", "--topic", "/tasks/start"],
                    input=payload.SerializeToString(), timeout=60, check=True,
                )  # fmt: skip
                line = watcher.stdout.readline()
        finally:
            watcher.kill()
            watcher.wait()
            watcher.stdout.close()
    assert line.split()[-3:] == ["ns", "/tasks/start", '{"container_id":"redis","pid":7}']


@pytest.mark.ctr
def test_an_installed_package_adds_a_plugin(tmp_path: Path) -> None:
    site = tmp_path / "site"
    information = site / "orlop_example-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: orlop-example\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[orlop.plugins]\nexample = orlop_example:REGISTRATIONS\n")
    (site / "orlop_example").symlink_to(EXAMPLE / "src" / "orlop_example")
    with DaemonProcess(tmp_path, path=str(site)) as daemon:
        told = daemon.ctr("plugins", "ls", "-d", "id==example")
        assert "io.containerd.snapshotter.v1" in told
        assert str(daemon.root / "io.containerd.snapshotter.v1.example") in told
        assert "Error" not in told
        daemon.ctr("snapshots", "--snapshotter", "example", "prepare", "key")
        assert "key" in daemon.ctr("snapshots", "--snapshotter", "example", "ls")
        daemon.end()
    switched_off = "[plugins.'io.containerd.snapshotter.v1.example']\nenabled = false"
    with DaemonProcess(tmp_path, path=str(site), config=switched_off) as daemon:
        assert "skip plugin: the example is switched off" in daemon.ctr("plugins", "ls", "-d", "id==example")
