"""The daemon of a user without privileges, in a user namespace of its own, as docs/rootless.md sets it up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import busybox_image
import pytest

pytestmark = [pytest.mark.root, pytest.mark.runtime]

UID = 54321
ENTER = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
APART = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
SCRIPT = """
mount -t tmpfs tmpfs /run && mkdir /run/state || exit 90
"$BIN/orlopd" --root "$HOME/root" --state /run/state --address /run/o.sock 2>"$HOME/log" &
daemon=$!
export ORLOP_ADDRESS=/run/o.sock
until "$BIN/orlop" version >/dev/null 2>&1; do kill -0 $daemon || { cat "$HOME/log"; exit 91; }; done
"$BIN/orlop" import "$HOME/image.tar" &&
"$BIN/orlop" run --rm busybox first sh -c 'id -u; echo x > /etc/new && cat /etc/new; cat /proc/self/uid_map' &&
"$BIN/orlop" run -d busybox second sleep 600 &&
"$BIN/orlop" exec second echo inside &&
"$BIN/orlop" rm -f second &&
! "$BIN/orlop" run --rm -m 64m busybox third true
status=$?
kill $daemon; wait $daemon
[ $status = 0 ] || cat "$HOME/log"
exit $status
"""


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="orlop-rootless-", dir="/tmp"))
    os.chown(path, UID, UID)
    yield path
    shutil.rmtree(path)


def why_not(home: Path) -> str:
    """Why it cannot be tried here; empty if it can."""
    program = Path(sys.executable).with_name("orlop")
    for what, command in (
        ("no user namespaces here", ["mount", "-t", "tmpfs", "tmpfs", "/run"]),
        ("other users cannot run this Python", ["sh", "-c", f'exec "{program}" --version']),
    ):
        done = subprocess.run([*ENTER, *APART, *command], cwd=home, capture_output=True, text=True)
        if done.returncode:
            return f"{what}: {done.stderr.strip()[-200:]}"
    return ""


def test_a_container_runs_without_privileges(home: Path) -> None:
    if why := why_not(home):
        pytest.skip(why)
    (home / "image.tar").write_bytes(busybox_image.oci_layout())
    environment = os.environ | {"HOME": str(home), "BIN": str(Path(sys.executable).parent), "XDG_RUNTIME_DIR": ""}
    done = subprocess.run(
        [*ENTER, *APART, "sh", "-c", SCRIPT], cwd=home, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[1:5] == ["0", "x", f"{0:>10} {UID:>10} {1:>10}", "second"]
    assert "inside" in done.stdout
    assert "limits of memory need a cgroup" in done.stderr
