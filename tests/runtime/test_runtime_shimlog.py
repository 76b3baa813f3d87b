"""What a shim writes to the FIFO of its bundle, in the daemon's log."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from orlop.runtime.shimlog import ShimLog


async def test_what_shims_write_reaches_the_log_of_the_daemon(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fifo = tmp_path / "one" / "log"
    fifo.parent.mkdir()
    os.mkfifo(fifo)
    shim_log = ShimLog.open(fifo)
    assert shim_log is not None
    with caplog.at_level(logging.INFO, "orlop.shim"):
        for text in (b"first\nsec", b"ond\n\n", b"x" * 17000 + b"\n"):  # shims come and go
            writer = os.open(fifo, os.O_WRONLY)
            await asyncio.to_thread(os.write, writer, text)
            os.close(writer)
        shim_log.close()  # takes what has come since
    assert caplog.messages[:2] == ["one: first", "one: second"]
    assert caplog.messages[2].startswith("one: xxx")
    assert len(caplog.messages[2]) <= len("one: ") + (16 << 10)


async def test_a_bundle_without_a_fifo_has_no_log(tmp_path: Path) -> None:
    assert ShimLog.open(tmp_path / "log") is None
