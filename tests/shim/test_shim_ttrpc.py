"""The shim's end of ttrpc against bytes that a client should not send."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from shim_world import running_shim

from orlop.api.runtime.task.v2 import shim_pb2 as v2
from orlop.api.runtime.task.v3 import shim_pb2 as v3
from orlop.api.ttrpc import request_pb2 as wire
from orlop.errors import DeadlineExceeded, Unimplemented
from orlop.rpc.ttrpc.frame import HEADER, MAX_PAYLOAD

pytestmark = [pytest.mark.root, pytest.mark.runtime]


def test_all_that_version_2_of_the_contract_knows_is_the_same_bytes_in_version_3() -> None:
    for name, message in v2.DESCRIPTOR.message_types_by_name.items():
        newer = v3.DESCRIPTOR.message_types_by_name[name].fields_by_number
        for field in message.fields:
            assert (newer[field.number].name, newer[field.number].type) == (field.name, field.type), name


async def ask(path: Path, *frames: bytes) -> list[wire.Response]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"".join(frames))
    answers = []
    for _ in frames:
        length, _, kind, _ = HEADER.unpack(await asyncio.wait_for(reader.readexactly(HEADER.size), 10))
        assert kind == 2
        answers.append(wire.Response.FromString(await reader.readexactly(length)))
    writer.close()
    return answers


def frame(stream: int, payload: bytes, kind: int = 1) -> bytes:
    return HEADER.pack(len(payload), stream, kind, 0) + payload


async def test_what_is_no_call_is_refused_and_the_shim_goes_on(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        path = tmp_path / "s" / "sock"
        call = wire.Request(service="containerd.task.v3.Task", method="Connect").SerializeToString()
        bad = wire.Request(service="containerd.task.v3.Task", method="Connect", payload=b"\xff").SerializeToString()
        answers = await ask(path, frame(2, call), frame(3, call, kind=3), frame(5, b"\xff\xff"), frame(5, call),
                            frame(7, bad), frame(9, call))  # fmt: skip
        assert [answer.status.message for answer in answers[:4]] == [
            "StreamID must be odd for client initiated streams",
            "StreamID is no longer active",
            "unmarshal request error: cannot parse invalid wire-format data",
            "StreamID cannot be re-used and must increment",
        ]
        assert sorted(answer.status.code for answer in answers[4:]) == [0, 13]
        oversize = HEADER.pack(MAX_PAYLOAD + 1, 1, 1, 0) + bytes(MAX_PAYLOAD + 1)
        assert (await ask(path, oversize))[0].status.code == 8
        assert (await shim.call("Connect")).shim_pid == shim.pid


async def test_unknown_services_and_methods_are_unimplemented(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        for service, method in (("containerd.task.v3.Task", "Nothing"), ("example.Nothing", "Connect")):
            with pytest.raises(Unimplemented):
                await shim.client.call(service, method, Empty(), Empty)


async def test_a_call_ends_at_its_deadline_and_a_wait_with_its_connection(tmp_path: Path) -> None:
    async with running_shim(tmp_path) as shim:
        await shim.create("sleep", "1000")
        with pytest.raises(DeadlineExceeded):
            await shim.client.call(
                "containerd.task.v2.Task", "Wait", v3.WaitRequest(id="one"), v3.WaitResponse, timeout=0.2
            )
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s" / "sock"))
        payload = v3.WaitRequest(id="one").SerializeToString()
        request = wire.Request(service="containerd.task.v3.Task", method="Wait", payload=payload)
        writer.write(frame(1, request.SerializeToString()))
        writer.close()
        await writer.wait_closed()
        del reader
        assert (await shim.call("State")).id == "one"
