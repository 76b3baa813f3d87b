from __future__ import annotations

import json
import logging
import os
import re

import pytest

from orlop.daemon.logging import JsonFormatter, QueuedHandler, TextFormatter, level_of


def record(message: str, **fields: str) -> logging.LogRecord:
    made = logging.LogRecord("orlop", logging.WARNING, "f", 1, message, (), None)
    made.__dict__["fields"] = fields
    return made


def test_lines_are_as_containerd_writes_them() -> None:
    line = TextFormatter().format(record("hello world", id="a.b", error="no such file"))
    assert re.fullmatch(
        r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z" level=warning msg="hello world" id=a\.b error="no such file"',
        line,
    )


def test_nothing_in_a_message_can_end_the_line_or_move_a_terminal() -> None:
    line = TextFormatter().format(record('a\nlevel=error msg="x"\x1b[2J\x85\u2028', k="b\r"))
    assert line.isprintable()
    assert r"\nlevel=error msg=\"x\"\x1b[2J\x85\u2028" in line
    assert json.loads(JsonFormatter().format(record("a\nb")))["msg"] == "a\nb"


def test_query_strings_of_urls_are_not_logged() -> None:
    line = TextFormatter().format(record("GET https://r.example/v2/x?X-Amz-Signature=secret failed"))
    assert "secret" not in line
    assert "https://r.example/v2/x?..." in line


def test_a_pipe_that_nobody_reads_does_not_hold_up_who_logs() -> None:
    reader, writer = os.pipe()
    handler = QueuedHandler(writer, limit=10)
    try:
        for _ in range(2000):
            handler.emit(record("x" * 1000))
        assert handler._dropped > 0
        os.set_blocking(reader, True)
        while b"log lines were dropped" not in (text := os.read(reader, 1 << 20)):
            assert text
    finally:
        os.close(reader)
        handler.drain()
        os.close(writer)


def test_levels_have_the_names_that_clients_use() -> None:
    assert [level_of(name) for name in ("", "trace", "WARN", "panic")] == [20, 5, 30, 50]
    with pytest.raises(ValueError, match='not a valid logrus Level: "loud"'):
        level_of("loud")
