"""The daemon of a user without privileges, in a user namespace of its own, as docs/rootless.md sets it up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import busybox_image
import pytest

import orlop

pytestmark = [pytest.mark.root, pytest.mark.runtime]

UID = 54321
ENTER = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
SHOW = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    """
while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 92; shift 2; done; shift
exec "$@"
""",
    "show",
]
"""Shows directories at other places, pairs up to `--`, to the command that follows."""
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


@dataclass(frozen=True)
class Programs:
    """A directory with `orlop` and `orlopd`, and what a user has to be shown to run them."""

    directory: Path
    shown: list[str | Path]

    def run(self, *command: str, home: Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs `command` as the user, in namespaces of their own."""
        whole = [*SHOW, *self.shown, "--", *ENTER, *APART, *command]
        return subprocess.run(whole, cwd=home, capture_output=True, text=True, **options)


def programs(home: Path) -> Programs:
    """What the user can run.

    Where this Python or this checkout is not theirs to enter (root's home), it is the system's Python of the same
    version, in an environment of its own that is shown the modules of this one.
    """
    own = Programs(Path(sys.executable).parent, [])
    system = f"/usr/bin/python3.{sys.version_info.minor}"
    done = own.run("sh", "-c", f'exec "{own.directory}/orlop" --version', home=home)
    if not done.returncode or not Path(system).exists():
        return own
    subprocess.run([system, "-m", "venv", "--without-pip", home / "venv"], check=True)
    made = home / "venv/bin"
    shown: list[str | Path] = []
    for number, path in enumerate((sysconfig.get_path("purelib"), Path(orlop.__file__).parents[1])):
        (home / f"modules{number}").mkdir()
        shown += [path, home / f"modules{number}"]
    packages = home / f"venv/lib/python3.{sys.version_info.minor}/site-packages"
    (packages / "shown.pth").write_text("".join(f"{path}\n" for path in shown[1::2]))
    for name in ("orlop", "orlopd"):
        _, _, script = (own.directory / name).read_text().partition("\n")
        (made / name).write_text(f"#!{made}/python3\n{script}")
        (made / name).chmod(0o755)
    return Programs(made, shown)


def why_not(home: Path, found: Programs) -> str:
    """Why it cannot be tried here; empty if it can."""
    for what, command in (
        ("no user namespaces here", ["mount", "-t", "tmpfs", "tmpfs", "/run"]),
        ("other users cannot run this Python", ["sh", "-c", f'exec "{found.directory}/orlop" --version']),
    ):
        done = found.run(*command, home=home)
        if done.returncode:
            return f"{what}: {done.stderr.strip()[-200:]}"
    return ""


def test_a_container_runs_without_privileges(home: Path) -> None:
    found = programs(home)
    if why := why_not(home, found):
        pytest.skip(why)
    (home / "image.tar").write_bytes(busybox_image.oci_layout())
    environment = os.environ | {"HOME": str(home), "BIN": str(found.directory), "XDG_RUNTIME_DIR": ""}
    done = found.run("sh", "-c", SCRIPT, home=home, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[1:5] == ["0", "x", f"{0:>10} {UID:>10} {1:>10}", "second"]
    assert "inside" in done.stdout
    assert "limits of memory need a cgroup" in done.stderr
