"""Stream processors: a real decoder (openssl), the contract of what a program is given, and programs that misbehave."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orlop.core.typed import Typed
from orlop.errors import Canceled, OrlopError, Unknown
from orlop.layers import processors
from orlop.layers.processors import StreamProcessor

ENCRYPTED = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
DATA = gzip.compress(os.urandom(1 << 20) + bytes(1 << 20), mtime=0)

# Reads the payload as the contract has it, and decrypts with the key in it.
DECODER = """
import os, subprocess, sys
from google.protobuf.any_pb2 import Any
payload = Any()
with os.fdopen(3, "rb") as secret:
    payload.ParseFromString(secret.read())
assert payload.type_url == "example.org/key", payload.type_url
reading, writing = os.pipe()
os.write(writing, payload.value)
os.close(writing)
command = ["openssl", "enc", "-d", f"-{os.environ['CIPHER']}", "-pbkdf2", "-pass", f"fd:{reading}"]
sys.exit(subprocess.run(command, pass_fds=[reading]).returncode)
"""

needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")


def shell(script: str, *env: str) -> StreamProcessor:
    return StreamProcessor("p", [ENCRYPTED], GZIP, "/bin/sh", ["-c", script], env)


def output(
    processor: StreamProcessor,
    source: bytes | Iterator[bytes] = DATA,
    payload: Typed | None = None,
    stop: threading.Event | None = None,
) -> bytes:
    chunks = (
        iter([source[at : at + 100_000] for at in range(0, len(source), 100_000)])
        if isinstance(source, bytes)
        else source
    )
    pieces = processors.run(processor, processor.program(), ENCRYPTED, payload, chunks, stop or threading.Event())
    return b"".join(pieces)


def encrypt(data: bytes, key: Path, cipher: str = "aes-256-ctr") -> bytes:
    command = ["openssl", "enc", f"-{cipher}", "-pbkdf2", "-pass", f"file:{key}"]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pid_in(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


@needs_openssl
def test_openssl_decrypts_with_a_key_of_the_configuration(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("a secret of some length\n")
    args = ["enc", "-d", "-aes-256-ctr", "-pbkdf2", "-pass", f"file:{key}"]
    section = {"accepts": [ENCRYPTED], "returns": GZIP, "path": "openssl", "args": args}
    secret = encrypt(DATA, key)
    assert DATA[:1000] not in secret
    assert output(StreamProcessor.of("aes", section), secret) == DATA


@needs_openssl
def test_a_decoder_takes_its_key_from_the_payload(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("another secret\n")
    decoder = StreamProcessor("p", [ENCRYPTED], GZIP, sys.executable, ["-c", DECODER], ["CIPHER=aes-256-cbc"])
    secret = encrypt(DATA, key, "aes-256-cbc")
    assert output(decoder, secret, Typed("example.org/key", b"another secret\n")) == DATA
    with pytest.raises(Unknown, match=r"(?s)bad decrypt"):
        output(decoder, secret, Typed("example.org/key", b"a wrong one\n"))


def test_a_program_has_the_environment_and_without_a_payload_no_descriptor_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_THE_DAEMON", "here")
    script = 'cat >/dev/null; echo "$STREAM_PROCESSOR_MEDIATYPE $FROM_THE_DAEMON $A $B"; '
    script += "readlink /proc/self/fd/3 || echo none"
    said = output(shell(script, "A=1=2", "B=3", "STREAM_PROCESSOR_MEDIATYPE=mine")).decode().split()
    assert said == [ENCRYPTED, "here", "1=2", "3", "none"]


def test_a_payload_is_on_descriptor_3_wherever_other_descriptors_lie() -> None:
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        os.close(held.pop(-40))
        os.close(held.pop(-20))
        os.close(held.pop(3))
        said = output(shell("cat >/dev/null; cat <&3"), payload=Typed("t", b"secret"))
    finally:
        for fd in held:
            os.close(fd)
    assert said.endswith(b"secret")


def test_an_exit_status_is_an_error_with_what_was_said() -> None:
    with pytest.raises(Unknown, match=r"^no key for this layer\n$"):
        output(shell("cat; echo no key for this layer >&2; exit 3"))
    with pytest.raises(Unknown, match=r"^stream processor p: exit status 4$"):
        output(shell("cat; exit 4"))
    with pytest.raises(Unknown, match=r"^stream processor p: ended by signal 9$"):
        output(shell("kill -9 $$"))


def test_what_is_said_on_standard_error_is_bounded_and_no_error_by_itself() -> None:
    assert output(shell("head -c 3000000 /dev/zero >&2; cat")) == DATA
    with pytest.raises(Unknown) as caught:
        output(shell("head -c 3000000 /dev/zero | tr '\\0' x >&2; exit 1"))
    assert str(caught.value) == "x" * (1 << 16)


def test_a_program_may_end_without_reading_everything() -> None:
    assert output(shell("head -c 5"), iter([b"12345", *[bytes(1 << 20)] * 8])) == b"12345"


def test_a_source_that_fails_is_the_error_that_is_told() -> None:
    def source() -> Iterator[bytes]:
        yield b"some"
        raise Unknown("the registry went away")

    with pytest.raises(Unknown, match=r"^the registry went away$"):
        output(shell("cat; exit 1"), source())


def test_a_program_that_hangs_ends_with_its_caller(tmp_path: Path) -> None:
    stop = threading.Event()
    errors: list[OrlopError] = []

    def work() -> None:
        try:
            output(shell(f"sleep 600 & echo $! > {tmp_path}/child; wait"), stop=stop)
        except OrlopError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    child = pid_in(tmp_path / "child")
    stop.set()
    thread.join(60)
    assert [type(error) for error in errors] == [Canceled]
    wait_until(lambda: not is_alive(child))


def test_a_program_that_goes_on_after_its_output_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "EXIT_SECONDS", 0.2)
    with pytest.raises(Unknown, match=r"^stream processor p: not ended 0\.2 s after its output$"):
        output(shell(f"cat; echo $$ > {tmp_path}/pid; exec >&- 2>&-; exec sleep 600"))
    assert not is_alive(pid_in(tmp_path / "pid"))


def test_who_stops_to_iterate_ends_the_program(tmp_path: Path) -> None:
    program = shell(f"echo $$ > {tmp_path}/pid; exec cat /dev/zero")
    pieces = processors.run(program, program.program(), ENCRYPTED, None, iter([b""]), threading.Event())
    next(pieces)
    pid = pid_in(tmp_path / "pid")
    pieces.close()  # type: ignore[attr-defined]
    assert not is_alive(pid)


def test_nothing_is_left_open() -> None:
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        assert output(shell("cat")) == DATA
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (before, threads)
