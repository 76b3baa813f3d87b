"""The daemon of a user without privileges, in a user namespace of its own, as docs/rootless.md sets it up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import busybox_image
import pytest

import orlop

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


def programs(home: Path) -> Path:
    """A directory with `orlop` and `orlopd` that the user can run.

    Where this Python is not theirs to execute (one in root's home), it is the system's of the same version, in an
    environment of its own with the modules of this one.
    """
    own = Path(sys.executable).parent
    done = subprocess.run([*ENTER, "sh", "-c", f'exec "{sys.executable}" -c ""'], cwd=home, capture_output=True)
    system = f"/usr/bin/python3.{sys.version_info.minor}"
    if not done.returncode or not Path(system).exists():
        return own
    subprocess.run([system, "-m", "venv", "--without-pip", home / "venv"], check=True)
    made = home / "venv/bin"
    paths = [sysconfig.get_path("purelib"), str(Path(orlop.__file__).parents[1])]
    packages = home / f"venv/lib/python3.{sys.version_info.minor}/site-packages"
    (packages / "checkout.pth").write_text("".join(f"{path}\n" for path in paths))
    for name in ("orlop", "orlopd"):
        _, _, script = (own / name).read_text().partition("\n")
        (made / name).write_text(f"#!{made}/python3\n{script}")
        (made / name).chmod(0o755)
    return made


def why_not(home: Path, bin: Path) -> str:
    """Why it cannot be tried here; empty if it can."""
    program = bin / "orlop"
    for what, command in (
        ("no user namespaces here", ["mount", "-t", "tmpfs", "tmpfs", "/run"]),
        ("other users cannot run this Python", ["sh", "-c", f'exec "{program}" --version']),
    ):
        done = subprocess.run([*ENTER, *APART, *command], cwd=home, capture_output=True, text=True)
        if done.returncode:
            return f"{what}: {done.stderr.strip()[-200:]}"
    return ""


def test_a_container_runs_without_privileges(home: Path) -> None:
    bin = programs(home)
    if why := why_not(home, bin):
        pytest.skip(why)
    (home / "image.tar").write_bytes(busybox_image.oci_layout())
    environment = os.environ | {"HOME": str(home), "BIN": str(bin), "XDG_RUNTIME_DIR": ""}
    done = subprocess.run(
        [*ENTER, *APART, "sh", "-c", SCRIPT], cwd=home, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[1:5] == ["0", "x", f"{0:>10} {UID:>10} {1:>10}", "second"]
    assert "inside" in done.stdout
    assert "limits of memory need a cgroup" in done.stderr
