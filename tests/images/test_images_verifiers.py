"""Verifiers: real programs in a directory, good, bad, slow, talkative, and such that leave children behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orlop.core.descriptor import Descriptor
from orlop.errors import DeadlineExceeded, Unknown
from orlop.images import verifiers
from orlop.images.verifiers import DirectoryVerifier

NAME = "example.org/app:1"
TARGET = Descriptor("application/vnd.oci.image.index.v1+json", "sha256:" + "ab" * 32, 123, {"a": "b"})

Install = Callable[[str, str], Path]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    (tmp_path / "bin").mkdir()

    def install(name: str, script: str) -> Path:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return install


def verifier(tmp_path: Path, limit: int = 10, seconds: float = 60) -> DirectoryVerifier:
    return DirectoryVerifier(str(tmp_path / "bin"), limit, seconds)


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


async def test_a_program_is_told_name_digest_and_descriptor(tmp_path: Path, install: Install) -> None:
    install("a", f'printf "%s|" "$@" > {tmp_path}/arguments; cat > {tmp_path}/stdin; echo fine')
    judgement = await verifier(tmp_path).verify(NAME, TARGET)
    assert (judgement.ok, judgement.reason) == (True, "a => fine")
    assert (tmp_path / "arguments").read_text() == (
        f"-name|{NAME}|-digest|{TARGET.digest}|-stdin-media-type|application/vnd.oci.descriptor.v1+json|"
    )
    assert json.loads((tmp_path / "stdin").read_text()) == {
        "mediaType": TARGET.media_type,
        "digest": TARGET.digest,
        "size": 123,
        "annotations": {"a": "b"},
    }


async def test_all_must_allow_and_the_one_that_does_not_is_named(tmp_path: Path, install: Install) -> None:
    install("10-a", "echo first")
    install("20-b", "echo  unsigned; exit 3")
    install("30-c", f"touch {tmp_path}/called")
    judgement = await verifier(tmp_path).verify(NAME, TARGET)
    assert not judgement.ok
    assert judgement.reason == "verifier 20-b rejected image (exit code 3): unsigned"
    assert not (tmp_path / "called").exists()
    (tmp_path / "bin" / "20-b").unlink()
    assert (await verifier(tmp_path).verify(NAME, TARGET)).reason == "10-a => first, 30-c => "


async def test_no_directory_and_an_empty_one_forbid_nothing(tmp_path: Path) -> None:
    judgement = await verifier(tmp_path).verify(NAME, TARGET)
    assert (judgement.ok, judgement.reason) == (True, f"image verifier directory {tmp_path}/bin does not exist")
    (tmp_path / "bin").mkdir()
    judgement = await verifier(tmp_path).verify(NAME, TARGET)
    assert (judgement.ok, judgement.reason) == (True, f"no image verifier binaries found in {tmp_path}/bin")


@pytest.mark.parametrize(("limit", "called"), [(0, ""), (1, "a"), (-1, "ab"), (2, "ab")])
async def test_only_so_many_are_called(tmp_path: Path, install: Install, limit: int, called: str) -> None:
    for name in "ba":
        install(name, f"printf {name} >> {tmp_path}/called")
    assert (await verifier(tmp_path, limit).verify(NAME, TARGET)).ok
    assert (tmp_path / "called").read_text() == called if called else not (tmp_path / "called").exists()


async def test_what_is_said_past_the_limit_is_cut_and_the_program_goes_on(tmp_path: Path, install: Install) -> None:
    limit = verifiers.OUTPUT_LIMIT
    install("a", f"head -c {limit + 300_000} /dev/zero | tr '\\0' x; head -c 300000 /dev/zero >&2; exit 0")
    judgement = await verifier(tmp_path).verify(NAME, TARGET)
    assert judgement.ok
    assert judgement.reason == "a => " + "x" * limit + "(stdout truncated)"


async def test_a_program_that_reads_nothing_may_allow(tmp_path: Path, install: Install) -> None:
    install("a", "exit 0")
    large = Descriptor(TARGET.media_type, TARGET.digest, 1, {"k": "v" * 1_000_000})
    assert (await verifier(tmp_path).verify(NAME, large)).ok


async def test_the_time_limit_ends_the_whole_group(tmp_path: Path, install: Install) -> None:
    install("slow", f"sleep 600 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(DeadlineExceeded, match=r"failed to call verifier slow \(runtime .*\): .*not ended after 1 s"):
        await verifier(tmp_path, seconds=1).verify(NAME, TARGET)
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not is_alive(child))


async def test_a_child_that_holds_the_pipes_open_is_not_waited_for(tmp_path: Path, install: Install) -> None:
    install("a", f"sleep 600 & echo $! > {tmp_path}/child; echo done")
    assert (await verifier(tmp_path).verify(NAME, TARGET)).reason == "a => done"
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not is_alive(child))


async def test_who_is_cancelled_ends_the_program(tmp_path: Path, install: Install) -> None:
    install("a", f"echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 600")
    task = asyncio.create_task(verifier(tmp_path).verify(NAME, TARGET))
    await asyncio.to_thread(wait_until, (tmp_path / "pid").exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_alive(int((tmp_path / "pid").read_text()))


async def test_no_judgement_is_an_error(tmp_path: Path, install: Install) -> None:
    install("a", "kill -9 $$")
    with pytest.raises(Unknown, match=r"failed to call verifier a .*: ended by signal 9"):
        await verifier(tmp_path).verify(NAME, TARGET)
    install("a", "").chmod(0o644)
    with pytest.raises(Unknown, match=r"failed to call verifier a .*permission denied"):
        await verifier(tmp_path).verify(NAME, TARGET)
    (tmp_path / "bin" / "a").unlink()
    (tmp_path / "bin" / "a").mkdir()
    with pytest.raises(Unknown, match="failed to call verifier a"):
        await verifier(tmp_path).verify(NAME, TARGET)


async def test_nothing_is_left_open(tmp_path: Path, install: Install) -> None:
    install("a", "exit 1")
    await verifier(tmp_path).verify(NAME, TARGET)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await verifier(tmp_path).verify(NAME, TARGET)
    assert len(os.listdir("/proc/self/fd")) == before
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
async def test_the_example_allows_what_is_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tmp_path / "policy.d"
    (policy / "signatures").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    shutil.copy(Path(__file__).parents[2] / "examples" / "signature-verifier", tmp_path / "bin" / "signature")
    monkeypatch.setenv("IMAGE_POLICY", str(policy))
    (policy / "policy").write_text(
        "# a comment\nexample.org/open/* allow\nexample.org/shut/* deny\nexample.org/* team.pem\n"
    )
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", tmp_path / "key")
    openssl("ec", "-in", tmp_path / "key", "-pubout", "-out", policy / "team.pem")

    async def judged(name: str) -> str:
        judgement = await verifier(tmp_path).verify(name, TARGET)
        return f"{judgement.ok}: {judgement.reason}"

    refused = "False: verifier signature rejected image (exit code 1): "
    assert await judged("example.org/app:1") == f"{refused}example.org/*: no signature of {TARGET.digest}"
    signature = policy / "signatures" / f"{TARGET.digest.partition(':')[2]}.sig"
    openssl("dgst", "-sha256", "-sign", tmp_path / "key", "-out", signature, stdin=TARGET.digest)
    assert await judged("example.org/app:1") == "True: signature => example.org/*: signed by team.pem"
    openssl("dgst", "-sha256", "-sign", tmp_path / "key", "-out", signature, stdin=TARGET.digest + " ")
    assert (await judged("example.org/app:1")).endswith("is not by team.pem")
    assert (await judged("example.org/open/app:1")).startswith("True: ")
    assert await judged("example.org/shut/app:1") == f"{refused}example.org/shut/*: denied by the policy"
    assert await judged("docker.io/library/x:1") == f"{refused}no line of the policy fits docker.io/library/x:1"


def openssl(*arguments: str | Path, stdin: str = "") -> None:
    subprocess.run(["openssl", *arguments], input=stdin.encode(), capture_output=True, check=True)
