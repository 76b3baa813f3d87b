"""The verifier that asks every program of a directory (`io.containerd.image-verifier.v1.bindir`).

Each is called with `-name`, `-digest` and `-stdin-media-type`, and has the descriptor as JSON on standard input. Exit
status 0 allows the pull; what it prints is the reason. All must allow.
"""

from __future__ import annotations

import logging
import os
import time

import msgspec

from orlop.core import duration
from orlop.core.descriptor import Descriptor
from orlop.core.verifier import Judgement
from orlop.errors import OrlopError, Unknown
from orlop.images import program

log = logging.getLogger(__name__)

OUTPUT_LIMIT = 32 << 10
"""Bytes of a verifier's standard output that become the reason, and of its standard error that are logged."""

DESCRIPTOR = "application/vnd.oci.descriptor.v1+json"


class DirectoryVerifier:
    """The first `limit` programs (all, where negative) in `directory`, by name, with `seconds` for each."""

    def __init__(self, directory: str, limit: int, seconds: float) -> None:
        self._directory = directory
        self._limit = limit
        self._seconds = seconds

    async def verify(self, name: str, descriptor: Descriptor) -> Judgement:
        """Raises where a program cannot be run, does not end in time or is killed: then nobody has judged."""
        try:
            entries = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return Judgement(True, f"image verifier directory {self._directory} does not exist")
        except OSError as error:
            raise Unknown(f"failed to list directory contents: {self._directory}: {error.strerror}") from error
        if not entries:
            return Judgement(True, f"no image verifier binaries found in {self._directory}")
        if 0 <= self._limit < len(entries):
            log.warning(
                "Image verifiers are being skipped: %s has %d, and max_verifiers is %d",
                *(self._directory, len(entries), self._limit),
            )
            entries = entries[: self._limit]
        reasons = []
        for entry in entries:
            judgement = await self._ask(entry, name, descriptor)
            if not judgement.ok:
                return judgement
            reasons.append(f"{entry} => {judgement.reason}")
        return Judgement(True, ", ".join(reasons))

    async def _ask(self, entry: str, name: str, target: Descriptor) -> Judgement:
        path = os.path.join(self._directory, entry)
        arguments = [path, "-name", name, "-digest", target.digest, "-stdin-media-type", DESCRIPTOR]
        started = time.monotonic_ns()
        try:
            answer = await program.ask(arguments, _document(target), seconds=self._seconds, limit=OUTPUT_LIMIT)
        except OrlopError as error:
            raise error.within(f"failed to call verifier {entry} (runtime {_since(started)})") from error
        for line in answer.stderr.decode(errors="replace").splitlines():
            log.debug("%s", line, extra={"fields": {"image_verifier": entry, "stream": "stderr"}})
        if answer.status < 0:
            raise Unknown(
                f"failed to call verifier {entry} (runtime {_since(started)}): ended by signal {-answer.status}"
            )
        reason = answer.stdout.decode(errors="replace").strip() + ("(stdout truncated)" if answer.is_cut else "")
        if answer.status:
            return Judgement(False, f"verifier {entry} rejected image (exit code {answer.status}): {reason}")
        return Judgement(True, reason)


def _since(started: int) -> str:
    """The time since `started`, as Go writes it, to the millisecond."""
    return duration.render((time.monotonic_ns() - started) // 1_000_000 * 1_000_000)


def _document(target: Descriptor) -> bytes:
    document: dict[str, object] = {"mediaType": target.media_type, "digest": target.digest, "size": target.size}
    if target.annotations:
        document["annotations"] = dict(target.annotations)
    return msgspec.json.encode(document) + b"\n"
