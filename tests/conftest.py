"""What all tests share: coroutine tests, and markers that say why a test is skipped here."""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a coroutine test in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(pyfuncitem.obj(**arguments))
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {
        "root": "" if os.geteuid() == 0 else "needs root",
        "ctr": "" if shutil.which("ctr") else "needs the ctr client (Debian package containerd)",
        "runtime": "" if shutil.which("runc") or shutil.which("crun") else "needs runc or crun",
    }
    for item in items:
        for name, why in missing.items():
            if why and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=why))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Removes the cgroups of namespaces that tests made: like containerd, the daemon leaves a namespace's cgroup."""
    if hasattr(session.config, "workerinput"):
        return  # of several processes: other workers may be at work below them
    for pattern in ("orlop-test*", "*/orlop-test*"):
        for cgroup in Path("/sys/fs/cgroup").glob(pattern):
            with suppress(OSError):  # in use by somebody else's run
                cgroup.rmdir()
