"""Credential helpers: programs `docker-credential-NAME` that keep passwords (docker's credential helper protocol)."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess

import msgspec

from orlop.core import clock
from orlop.core.registry import Credential
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.registry.redaction import printable

_NAME = re.compile(r"[a-z0-9_-]{1,64}", re.ASCII)
_NOT_FOUND = ("credentials not found in native keychain", "no credentials found", "credentials not found")
_OUTPUT_LIMIT = 64 << 10
_SECONDS = 30.0
_TOKEN_USER = "<token>"  # noqa: S105


class _Answer(msgspec.Struct):
    Username: str = ""
    Secret: str = ""


class CredentialHelper:
    """The helper `name`. Its methods block; run them in a thread."""

    def __init__(self, name: str, seconds: float = _SECONDS) -> None:
        if not _NAME.fullmatch(name):
            raise InvalidArgument(f"credential helper {name!r}: not of the form [a-z0-9_-]+")
        self.program = f"docker-credential-{name}"
        self._seconds = seconds

    def get(self, key: str) -> Credential | None:
        """What it has for the server `key`; None if nothing. Raises FailedPrecondition where it fails."""
        status, output = self._run("get", key.encode())
        if status:
            if any(text in output.decode("utf-8", "replace").lower() for text in _NOT_FOUND):
                return None
            raise FailedPrecondition(f"{self.program} get: {_said(status, output)}")
        try:
            answer = msgspec.json.decode(output, type=_Answer)
        except (msgspec.DecodeError, RecursionError):
            # What it wrote may hold the secret.
            raise FailedPrecondition(f"{self.program} get: its output is no JSON object of credentials") from None
        if not answer.Secret:
            return None
        return Credential("" if answer.Username == _TOKEN_USER else answer.Username, answer.Secret)

    def store(self, key: str, credential: Credential) -> None:
        entry = {"ServerURL": key, "Username": credential.username or _TOKEN_USER, "Secret": credential.secret}
        status, output = self._run("store", msgspec.json.encode(entry))
        if status:
            raise FailedPrecondition(f"{self.program} store: {_said(status, output)}")

    def erase(self, key: str) -> bool:
        """False if there was nothing to erase."""
        if self.get(key) is None:
            return False
        status, output = self._run("erase", key.encode())
        if status:
            raise FailedPrecondition(f"{self.program} erase: {_said(status, output)}")
        return True

    def _run(self, verb: str, text: bytes) -> tuple[int, bytes]:
        program = shutil.which(self.program)
        if program is None:
            raise FailedPrecondition(f"{self.program}: not found in PATH")
        process = subprocess.Popen(
            [program, verb],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            try:
                with process.stdin:
                    process.stdin.write(text)
            except BrokenPipeError:
                pass  # it may know without reading
            output = self._read(process.stdout.fileno())
            return process.wait(self._seconds), output
        except (subprocess.TimeoutExpired, TimeoutError):
            raise FailedPrecondition(f"{self.program} {verb}: no end within {self._seconds:g} s") from None
        finally:
            process.stdout.close()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _read(self, descriptor: int) -> bytes:
        deadline = clock.monotonic() + self._seconds
        output = b""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while True:
                left = deadline - clock.monotonic()
                if left <= 0 or not selector.select(left):
                    raise TimeoutError
                piece = os.read(descriptor, 1 << 16)
                if not piece:
                    return output
                output += piece
                if len(output) > _OUTPUT_LIMIT:
                    raise FailedPrecondition(f"{self.program}: more than {_OUTPUT_LIMIT} bytes of output")


def _said(status: int, output: bytes) -> str:
    text = printable(output.decode("utf-8", "replace"), 200)
    return f"exit status {status}{text and ': ' + text}"
