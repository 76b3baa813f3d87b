"""The contract with shim binaries, kept with ones that break it: garbage, silence, hanging, mute sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import foreign_shim
import pytest
from foreign_shim import calls, does
from runtime_world import SCOPE, world

from orlop import faults
from orlop.api.runtime.bootstrap.v1 import bootstrap_pb2
from orlop.core.task import NewTask
from orlop.errors import DeadlineExceeded, Unavailable, Unknown
from orlop.runtime import bootstrap as contract
from orlop.runtime.bootstrap import CutOff, ShimSettings
from orlop.runtime.bundle import Bootstrap, Bundle
from orlop.runtime.owner import Owner

pytestmark = [pytest.mark.root]


async def refused(tmp_path: Path, binary: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a create with the shim `binary` says, which leaves nothing."""
    monkeypatch.setattr(contract, "START_TIMEOUT", 1.0)
    async with world(tmp_path) as here:
        here.shims.limits = replace(here.shims.limits, load=0.5, cleanup=0.5, shutdown=0.5)
        here.add("one", "true", runtime=str(binary))
        with pytest.raises((Unknown, Unavailable, DeadlineExceeded)) as error:
            await here.tasks.create(SCOPE, NewTask("one"))
        assert here.leftovers == []
        assert await here.tasks.list(SCOPE) == []
        return str(error.value)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (does(b"no such thing\n", status=1), "start failed: no such thing: exit status 1"),
        (does(complains="panic: it broke\n", status=2), "start failed: panic: it broke: exit status 2"),
        (does(b""), "which is no address"),
        (does(b"two\nlines\n"), "which is no address"),
        (does(b"\xff\xfe\x00\x01"), "which is no address"),
        (does(b'{"version":9,"address":"unix:///s","protocol":"ttrpc"}'), "unsupported shim version (9)"),
        (does(b'{"version":3,"address":"unix:///s","protocol":"smoke"}'), "unsupported shim protocol 'smoke'"),
        (does(b"unix:///nowhere/at/all"), "dial unix /nowhere/at/all: connect: no such file or directory"),
        (does(b"unix:///nowhere\n", complains="and a warning\n"), "which is no address"),
        (does(hangs=True), "shim killed after 1s"),
    ],
)
async def test_a_start_that_goes_wrong_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: dict[str, object], words: str
) -> None:
    binary = foreign_shim.script(tmp_path / "shim", start=start)
    assert words in await refused(tmp_path, binary, monkeypatch)


async def test_a_program_that_cannot_be_executed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "shim"
    binary.write_text("no program")
    binary.chmod(0o755)
    assert f"fork/exec {binary}: exec format error" in await refused(tmp_path, binary, monkeypatch)


@pytest.mark.parametrize(
    "answer",
    [
        b"%s",
        b'{"version":2,"address":"%s","protocol":"ttrpc"}',
        b'{"version":3,"address":"%s","protocol":"ttrpc"}',
        b"protobuf",
    ],
)
async def test_a_shim_that_is_mute_is_given_up_and_cleaned_up_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    path = tmp_path / "mute"
    if answer == b"protobuf":
        message = bootstrap_pb2.BootstrapResult(version=3, address=f"unix://{path}", protocol="ttrpc")
        answer = message.SerializeToString()
    elif b"%s" in answer:
        answer = answer.replace(b"%s", f"unix://{path}".encode())
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen(8)
        binary = foreign_shim.script(tmp_path / "shim", start=does(answer))
        assert "deadline exceeded" in await refused(tmp_path, binary, monkeypatch)
        assert [arguments[-1] for arguments, *_ in calls(binary)] == ["start", "delete"]


async def test_start_and_delete_are_told_what_the_contract_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mute"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen(8)
        binary = foreign_shim.script(tmp_path / "shim", start=does(f"unix://{path}".encode()))
        await refused(tmp_path, binary, monkeypatch)
    (start, directory, environment, length), (delete, *_, nothing) = calls(binary)
    bundle = str(tmp_path / "state" / "test" / "one")
    common = ["-namespace", "test", "-address", str(tmp_path / "grpc"), "-publish-binary", "/bin/true", "-id", "one"]
    assert start == [*common, "start"]
    assert delete == [*common, "-bundle", bundle, "delete"]
    assert directory == bundle
    assert length > 0
    assert nothing == 0
    assert environment == {
        "TTRPC_ADDRESS": str(tmp_path / "grpc.ttrpc"),
        "GRPC_ADDRESS": str(tmp_path / "grpc"),
        "NAMESPACE": "test",
        "MAX_SHIM_VERSION": "2",
        "GOMAXPROCS": "2",
    }


async def test_a_delete_that_hangs_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mute"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen(8)
        hanging = does(complains="waiting\n", hangs=True)
        binary = foreign_shim.script(tmp_path / "shim", start=does(f"unix://{path}".encode()), delete=hanging)
        await refused(tmp_path, binary, monkeypatch)


async def test_info_is_asked_for_and_refused_when_it_is_none(tmp_path: Path) -> None:
    settings = ShimSettings(grpc_address="g", ttrpc_address="t")
    binary = foreign_shim.script(tmp_path / "shim", info=does(b"\xff\xff"))
    with pytest.raises(Unknown, match=r"the answer is no RuntimeInfo$"):
        await contract.info(str(binary), None, settings)
    assert calls(binary)[0][0] == ["-info"]


async def test_what_does_not_end_is_given_up_when_its_owner_ends() -> None:
    owner = Owner()
    mute = owner.start(asyncio.Event().wait(), "a deletion whose shim does not answer")
    done = owner.start(asyncio.sleep(0, "done"), "one that is answered")
    await owner.drain(0.1)
    assert mute.cancelled()
    assert done.result() == "done"


async def test_a_bundle_says_whose_its_shim_is_before_it_says_where_that_is(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        bundle = here.shims.bundles.create("test", "one", b"{}")
        faults.arm("runtime.bundle.binary", "error(EIO)")
        try:
            with pytest.raises(OSError, match=r"runtime\.bundle\.binary"):
                await here.shims.join(bundle, "shim", "pod", Bootstrap(3, "unix:///nowhere"))
        finally:
            faults.disarm()
        assert (bundle.sandbox(), bundle.bootstrap()) == ("pod", None)
        bundle.remove()


async def test_a_program_that_leaves_its_pipe_to_another_is_given_up_all_the_same(tmp_path: Path) -> None:
    binary = tmp_path / "shim"
    binary.write_text(f"#!/bin/sh\nsetsid sleep 1000 &\necho $! > {tmp_path}/sleeper\n")
    binary.chmod(0o755)
    bundle = Bundle("test", "one", tmp_path, tmp_path)
    before = set(os.listdir("/proc/self/fd"))
    try:
        with pytest.raises(CutOff, match=r"shim killed after 1s$"):
            await contract.delete(str(binary), bundle, ShimSettings(grpc_address="g", ttrpc_address="t"), 1)
        assert set(os.listdir("/proc/self/fd")) <= before
    finally:
        os.kill(int((tmp_path / "sleeper").read_text()), signal.SIGKILL)


async def test_of_endless_output_only_so_much_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "_ANSWER_LIMIT", 3)
    binary = tmp_path / "shim"
    binary.write_text("#!/bin/sh\nhead -c 9000000 /dev/zero; exit 3\n")
    binary.chmod(0o755)
    with pytest.raises(Unknown, match=r"^\x00{3}: exit status 3$"):
        await contract.info(str(binary), None, ShimSettings(grpc_address="g", ttrpc_address="t"))


async def test_as_many_deletes_run_at_once_as_are_asked_for(tmp_path: Path) -> None:
    """Each waits for the last to have come."""
    binary = tmp_path / "shim"
    count = 40
    binary.write_text(
        f"#!/bin/sh\ntouch {tmp_path}/came.$$\n"
        f"while [ $(ls {tmp_path} | grep -c came) -lt {count} ]; do sleep 0.05; done\n"
    )
    binary.chmod(0o755)
    bundle = Bundle("test", "one", tmp_path, tmp_path)
    settings = ShimSettings(grpc_address="g", ttrpc_address="t")
    await asyncio.gather(*(contract.delete(str(binary), bundle, settings, 120) for _ in range(count)))
