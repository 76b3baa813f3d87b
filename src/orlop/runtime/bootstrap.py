"""Shim binaries as programs: `start`, `delete` and `-info` of containerd's shim v2 contract."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from orlop.api.runtime.bootstrap.v1 import bootstrap_pb2
from orlop.api.runtime.task.v3 import shim_pb2
from orlop.api.types import introspection_pb2
from orlop.core.typed import Typed
from orlop.core.wire import common
from orlop.errors import OrlopError, Unknown
from orlop.runtime import program
from orlop.runtime.bundle import Bootstrap, Bundle

log = logging.getLogger(__name__)

MAX_VERSION = 3
START_TIMEOUT = 100.0
"""Seconds; containerd's dial limit."""
INFO_TIMEOUT = 10.0
_ANSWER_LIMIT = 10 << 20


class CutOff(Unknown):
    """A shim binary was killed since its time was up; what it was doing is half done."""


@dataclass(frozen=True, slots=True)
class ShimSettings:
    """What every shim is told: the daemon's addresses, its own binary, its log level, extra environment."""

    grpc_address: str
    ttrpc_address: str
    daemon_binary: str = "orlopd"
    version: str = ""
    log_level: str = "info"
    socket_dir: str = ""
    environment: Sequence[str] = field(default_factory=tuple)

    @property
    def debug(self) -> bool:
        return self.log_level in ("debug", "trace")

    def variables(self, namespace: str) -> dict[str, str]:
        """What is added to the daemon's environment."""
        added = {
            "GOMAXPROCS": "2",
            "MAX_SHIM_VERSION": "2",
            "TTRPC_ADDRESS": self.ttrpc_address,
            "GRPC_ADDRESS": self.grpc_address,
            "NAMESPACE": namespace,
        }
        added.update(pair.partition("=")[::2] for pair in self.environment)
        return added

    def flags(self, namespace: str, id: str) -> list[str]:
        return [
            "-namespace", namespace, "-address", self.grpc_address, "-publish-binary", self.daemon_binary, "-id", id,
            *(["-debug"] if self.debug else []),
        ]  # fmt: skip


async def start(binary: str, bundle: Bundle, options: Typed | None, settings: ShimSettings) -> Bootstrap:
    """Runs `<binary> ... start`. Raises Unknown with what the shim printed if it fails."""
    arguments = [*settings.flags(bundle.namespace, bundle.id), "start"]
    variables = settings.variables(bundle.namespace)
    old_form = any(old in os.path.basename(binary) for old in ("shim-runc-v1", "shim-runhcs-v1"))
    told = _any_bytes(options) if old_form else _params(bundle, options, settings).SerializeToString()
    try:
        output = await _run(binary, arguments, bundle.path, told, variables, START_TIMEOUT)
    except Unknown as error:
        # Shims from before 2.0 take the instance id, the first field of what they are told, for the type of options.
        if old_form or f"type with url {bundle.id}: not found" not in str(error):
            raise
        output = await _run(binary, arguments, bundle.path, _any_bytes(options), variables, START_TIMEOUT)
    return parse_answer(output)


async def delete(
    binary: str, bundle: Bundle, settings: ShimSettings, timeout: float, *, whole: bool = False
) -> shim_pb2.DeleteResponse:
    """Runs `<binary> ... delete`, which removes what a dead shim left of its container.

    Raises CutOff after `timeout` seconds, Unknown if it fails. Our own shim also fails where the OCI runtime does, if
    the `whole` of the container has to go.
    """
    flags = settings.flags(bundle.namespace, bundle.id)
    debug = ["-debug"] if settings.debug else []
    extra = ["-whole"] if whole else []
    arguments = [*flags[: len(flags) - len(debug)], "-bundle", str(bundle.path), *debug, *extra, "delete"]
    output = await _run(
        binary, arguments, bundle.path, None, settings.variables(bundle.namespace), timeout, merge=False
    )
    try:
        return shim_pb2.DeleteResponse.FromString(output)
    except DecodeError:
        raise Unknown(f"shim {binary} delete: the answer is no DeleteResponse") from None


async def info(binary: str, options: Typed | None, settings: ShimSettings) -> introspection_pb2.RuntimeInfo:
    """Runs `<binary> -info`."""
    output = await _run(binary, ["-info"], Path("/"), _any_bytes(options), {}, INFO_TIMEOUT, merge=False)
    try:
        return introspection_pb2.RuntimeInfo.FromString(output)
    except DecodeError:
        raise Unknown(f"shim {binary} -info: the answer is no RuntimeInfo") from None


def parse_answer(output: bytes) -> Bootstrap:
    """The three forms of an answer to `start`: a protobuf message, JSON, or a bare address (which is version 2)."""
    try:
        message = bootstrap_pb2.BootstrapResult.FromString(output)
    except DecodeError:
        message = bootstrap_pb2.BootstrapResult()
    if message.address and message.version >= 2 and message.protocol:
        return checked(Bootstrap(message.version, message.address, message.protocol))
    text = output.decode("utf-8", "replace").strip()
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        version, address = document.get("version"), document.get("address")
        protocol = document.get("protocol", "ttrpc")
        if not (isinstance(version, int) and isinstance(address, str) and isinstance(protocol, str)) or version < 2:
            raise Unknown(f"shim answered {text[:200]!r}: version 2 or later and an address are needed")
        return checked(Bootstrap(version, address, protocol))
    if not text or "\n" in text or "\ufffd" in text:
        raise Unknown(f"shim answered {text[:200]!r}, which is no address")
    return checked(Bootstrap(2, text))


def parse_endpoint(address: str, version: int) -> Bootstrap:
    """Who serves a sandbox's tasks, in a sandbox controller's words: `ttrpc+unix:///path`. Raises Unknown."""
    protocol, plus, rest = address.partition("+")
    if not plus:
        raise Unknown(
            f"sandbox address {address!r}: its scheme should be in the form of <protocol>+<unix|vsock|tcp>, "
            "i.e. ttrpc+unix or grpc+vsock"
        )
    return checked(Bootstrap(version, rest, protocol))


def checked(bootstrap: Bootstrap) -> Bootstrap:
    """Raises Unknown if it is of no kind that this daemon can reach."""
    if bootstrap.version > MAX_VERSION:
        raise Unknown(f"unsupported shim version ({bootstrap.version})")
    if bootstrap.protocol != "ttrpc":
        raise Unknown(f"unsupported shim protocol {bootstrap.protocol!r}: this daemon speaks ttrpc to shims")
    if not bootstrap.address or "\0" in bootstrap.address:
        raise Unknown("shim answered without an address")
    if bootstrap.address.startswith(("vsock://", "hvsock://")):
        raise Unknown(f"unsupported shim address {bootstrap.address}: this daemon reaches shims by unix sockets")
    return bootstrap


def _params(bundle: Bundle, options: Typed | None, settings: ShimSettings) -> bootstrap_pb2.BootstrapParams:
    name = f"LOG_LEVEL_{settings.log_level.upper()}"
    levels = bootstrap_pb2.LogLevel
    params = bootstrap_pb2.BootstrapParams(
        instance_id=bundle.id,
        namespace=bundle.namespace,
        log_level=name if name in levels.keys() else "LOG_LEVEL_INFO",  # noqa: SIM118
        containerd_version=settings.version,
        containerd_ttrpc_address=settings.ttrpc_address,
        containerd_grpc_address=settings.grpc_address,
        containerd_binary=settings.daemon_binary,
    )
    if settings.socket_dir:
        params.socket_dir = settings.socket_dir
    if options is not None:
        params.extensions.add(value=common.any_of(options))
    return params


def _any_bytes(options: Typed | None) -> bytes:
    return (common.any_of(options) or Any()).SerializeToString()


async def _run(
    binary: str,
    arguments: Sequence[str],
    directory: Path,
    told: bytes | None,
    variables: Mapping[str, str],
    timeout: float,
    *,
    merge: bool = True,
) -> bytes:
    """What `binary` printed. Raises CutOff and Unknown."""
    try:
        ended = await program.run(
            [binary, *arguments], directory, variables, told or b"", seconds=timeout, limit=_ANSWER_LIMIT, merge=merge
        )
    except TimeoutError:
        raise CutOff(f"{binary} {arguments[-1]}: shim killed after {timeout:g}s") from None
    except OSError as error:
        raise Unknown(f"fork/exec {binary}: {(error.strerror or str(error)).lower()}") from None
    if ended.stderr:
        log.info("%s %s: %s", binary, arguments[-1], ended.stderr[:4096].decode("utf-8", "replace").strip())
    if ended.status:
        raise _failure(ended.stderr or ended.stdout, ended.status)
    return ended.stdout


def _failure(output: bytes, code: int) -> OrlopError:
    text = output[:4096].decode("utf-8", "replace").strip()
    end = f"exit status {code}" if code > 0 else f"signal: {signal.strsignal(-code) or -code}".lower()
    return Unknown(f"{text}: {end}")
