"""Tasks of a host whose runtime is crun: which of the two runs them, and that clients cannot tell."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import oci_runtime
import pytest
from runtime_world import SCOPE, World, cgroup_of, spec_of
from test_runtime_builtin import RUNC, fork_server, place, world

from orlop.core.task import NewTask
from orlop.errors import OrlopError

pytestmark = [
    pytest.mark.root,
    pytest.mark.runtime,
    pytest.mark.skipif(not oci_runtime.chosen().other, reason="needs a host where crun and runc both work"),
]


def document(here: World, id: str, *args: str, **fields: Any) -> bytes:
    known = json.loads(spec_of(here.directory / "image", id, args))
    known["process"] |= fields.pop("process", {})
    return json.dumps(known | fields).encode()


async def ran_by(here: World, id: str, spec: bytes) -> tuple[str, str]:
    """Runs the container to its end; the runtime that did it, and the version that it was given."""
    here.add(id, runtime=RUNC, spec=spec)
    bundle = here.directory / "state" / SCOPE.namespace / id
    await here.tasks.create(SCOPE, NewTask(id))
    found = (bundle / "runtime").read_text(), json.loads((bundle / "config.json").read_text())["ociVersion"]
    await here.tasks.start(SCOPE, id)
    assert (await here.tasks.wait(SCOPE, id)).status == 3
    assert (await here.tasks.delete(SCOPE, id)).status == 3
    return found


async def test_what_crun_does_not_take_is_run_by_runc_and_all_else_by_crun() -> None:
    with place() as directory, fork_server(directory) as forks:
        async with world(directory, forks=forks) as here:
            exit_3 = ("sh", "-c", "exit 3")
            newest = document(here, "newest", *exit_3, ociVersion="1.3.0")
            name, version = await ran_by(here, "newest", newest)
            assert (name, version in ("1.1.0", "1.3.0")) == ("crun", True)
            record = await here.containers.get(SCOPE, "newest")
            assert record.spec is not None
            assert record.spec.value == newest
            of_the_future = document(here, "future", *exit_3, ociVersion="1.99.0")
            assert await ran_by(here, "future", of_the_future) == ("runc", "1.99.0")
            no_dev = document(here, "dev", *exit_3, mounts=[{"destination": "/proc", "type": "proc", "source": "proc"}])
            assert await ran_by(here, "dev", no_dev) == ("runc", "1.0.2")
            hooked = document(here, "hook", *exit_3, hooks={"createRuntime": [{"path": "/bin/true"}]})
            apart = oci_runtime.chosen().crun
            assert apart is not None
            assert (await ran_by(here, "hook", hooked))[0] == ("runc" if apart.is_apart else "crun")


@pytest.mark.parametrize(
    ("program", "words"), [("/no/such", "no such file or directory"), ("/proc", "permission denied")]
)
async def test_a_program_that_cannot_be_run_is_told_in_words_that_clients_know(program: str, words: str) -> None:
    with place() as directory, fork_server(directory) as forks:
        async with world(directory, forks=forks) as here:
            here.add("bad", runtime=RUNC, spec=document(here, "bad", process={"args": [program]}))
            with pytest.raises(OrlopError, match=f"^failed to create shim task: OCI runtime create failed: .*{words}"):
                await here.tasks.create(SCOPE, NewTask("bad"))
            assert here.leftovers == []


async def test_a_container_that_is_gone_from_the_runtime_can_be_deleted() -> None:
    with place() as directory, fork_server(directory) as forks:
        async with world(directory, forks=forks) as here:
            here.add("gone", runtime=RUNC, spec=document(here, "gone", "sh", "-c", "exit 3"))
            await here.tasks.create(SCOPE, NewTask("gone"))
            await here.tasks.start(SCOPE, "gone")
            await here.tasks.wait(SCOPE, "gone")
            (state,) = Path(directory / "runc" / SCOPE.namespace).iterdir()
            shutil.rmtree(state)
            assert (await here.tasks.delete(SCOPE, "gone")).status == 3
            assert here.leftovers == []
    for pattern in ("", "*/"):  # of which nobody knows any more
        for cgroup in Path("/sys/fs/cgroup").glob(pattern + cgroup_of("gone").lstrip("/")):
            cgroup.rmdir()


@pytest.mark.parametrize("kinds", [(), ("cgroup",)])
async def test_a_container_sees_its_own_cgroups(kinds: tuple[str, ...]) -> None:
    """With a cgroup mount, in the host's cgroup namespace and in one of its own."""
    script = (
        "found=/sys/fs/cgroup; [ -d $found/memory ] && found=$found/memory; grep -qx 1 $found/cgroup.procs && exit 3"
    )
    with place() as directory, fork_server(directory) as forks:
        async with world(directory, forks=forks) as here:
            (directory / "image/sys").mkdir()
            known = json.loads(document(here, "seen", "sh", "-c", script))
            known["linux"]["namespaces"] += [{"type": kind} for kind in kinds]
            known["mounts"] += [
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
            ]
            assert (await ran_by(here, "seen", json.dumps(known).encode()))[0] == "crun"
            assert not list(Path("/sys/fs/cgroup").glob(f"*{cgroup_of('seen')}"))
