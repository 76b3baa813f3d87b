"""The watch over kills for want of memory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from orlop.shim import loop
from orlop.shim.oom import OomWatcher

pytestmark = [pytest.mark.root]


def version_2() -> Path | None:
    """The hierarchy of cgroup v2, where there is one."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(before.split()[4])
    return None


@pytest.mark.skipif(version_2() is None, reason="needs cgroup v2")
def test_a_group_that_goes_before_its_event_is_heard_is_watched_no_more() -> None:
    """As a systemd scope does whose last process was killed: its event would be there for ever."""
    hierarchy = version_2()
    assert hierarchy is not None
    group = hierarchy / f"orlop-test-{os.getpid()}-oom"
    group.mkdir()

    async def main() -> None:
        told: list[str] = []
        watcher = OomWatcher(told.append)
        watcher._add_unified("gone", str(group / "cgroup.events"))  # memory.events is not in every hierarchy
        os.read(watcher._watched["gone"].descriptor, 4096)
        with subprocess.Popen(["sleep", "1000"]) as process:  # noqa: ASYNC220
            (group / "cgroup.procs").write_text(str(process.pid))
            process.kill()
        remove(group)
        async with loop.timeout(30):
            while watcher.watched():
                await loop.sleep(0.01)
        watcher.close()
        assert told == []

    try:
        loop.run(main())
    finally:
        if group.exists():
            group.rmdir()


def remove(group: Path) -> None:
    """A process that has been waited for may be in its group a little longer."""
    while group.exists():
        try:
            group.rmdir()
        except OSError:
            continue
