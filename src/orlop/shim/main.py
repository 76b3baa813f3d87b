"""`containerd-shim-orlop-v2`: the shim v2 contract's command line, so that any containerd can run this shim."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from orlop import errors
from orlop.api.runtime.bootstrap.v1.bootstrap_pb2 import LOG_LEVEL_DEBUG, BootstrapParams
from orlop.api.runtime.task.v3.shim_pb2 import DeleteResponse
from orlop.api.types.introspection_pb2 import RuntimeInfo
from orlop.api.types.runc.options.oci_pb2 import Options
from orlop.shim import files, loop, rootfs, server
from orlop.shim.container import read_options, runtime_of
from orlop.shim.reaper import Reaper

NAME = "containerd-shim-orlop-v2"

_INPUT_LIMIT = 10 << 20
_LISTENER = 3
_KILLED = 137
_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*", re.ASCII)
_FEATURES_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def main() -> None:
    """Runs the command line; a failure is told on stderr and by the status 1."""
    try:
        sys.exit(command(sys.argv[1:]))
    except (errors.OrlopError, OSError) as error:
        sys.stderr.write(f"io.containerd.orlop.v2: {error}\n")
        sys.exit(1)


def command(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(NAME, allow_abbrev=False)
    for flag in ("namespace", "address", "publish-binary", "id", "bundle", "socket"):
        parser.add_argument(f"-{flag}", f"--{flag}", default="")
    for flag in ("debug", "info", "v", "whole"):
        parser.add_argument(f"-{flag}", f"--{flag}", action="store_true")
    parser.add_argument("action", nargs="?", choices=("start", "delete"))
    flags = parser.parse_args(list(argv))
    if flags.v:
        sys.stdout.write(f"{NAME}:\n  Version: {_version()}\n")
        return 0
    if flags.info:
        return loop.run(_info())
    if not flags.namespace:
        raise errors.InvalidArgument.verbatim("shim namespace cannot be empty")
    for value, what in ((flags.namespace, "namespace"), (flags.id, "id")):
        if _IDENTIFIER.fullmatch(value) is None:
            raise errors.InvalidArgument(f"{what} {value!r}")
    if flags.action == "start":
        return _start(flags)
    if flags.action == "delete":
        return loop.run(_delete(flags))
    return _serve(flags)


def _start(flags: argparse.Namespace) -> int:
    """Starts the shim of this group, or finds it, and tells its address."""
    from orlop.shim.caller import Caller  # what it needs is no weight for a shim to carry

    given = sys.stdin.buffer.read(_INPUT_LIMIT)
    params = _bootstrap_params(given, flags)
    directory = (params.socket_dir if params else "") or server.SOCKET_DIRECTORY
    if not os.path.isabs(directory):
        raise errors.InvalidArgument(f"socket directory {directory!r} is not an absolute path")
    bundle = os.getcwd()
    caller = Caller(flags.publish_binary, sends_parameters=params is not None)
    address = (params.containerd_grpc_address if params else "") or flags.address
    path = server.socket_path(directory, address, flags.namespace, server.group_of(bundle, flags.id))
    listener = server.listen(path)
    if listener is not None:
        debug = flags.debug or (params is not None and params.log_level <= LOG_LEVEL_DEBUG)
        with listener:
            _spawn(flags, address, path, listener, debug)
    if params is None:
        _write_address(bundle, path)
    sys.stdout.write(_answer(path, caller.version()))
    sys.stdout.flush()
    return 0


def _write_address(bundle: str, path: str) -> None:
    """Notes the address where containerd 1 looks for it when it has been restarted; later ones write their own note."""
    aside = os.path.join(bundle, ".address")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(f"unix://{path}")
    os.rename(aside, os.path.join(bundle, "address"))


def _spawn(flags: argparse.Namespace, address: str, path: str, listener: socket.socket, debug: bool) -> None:
    argv = [sys.executable, "-I", "-m", "orlop.shim.main", "-namespace", flags.namespace, "-id", flags.id]
    argv += ["-address", address, "-socket", path, *(["-debug"] if debug else [])]
    score = server.oom_score(os.getppid())
    log = os.open("log", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC) if os.path.exists("log") else os.dup(2)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    # the listener's copy keeps its number only if no other descriptor is put there first
    spare = os.dup(listener.fileno())
    try:
        pid = os.posix_spawn(
            argv[0],
            argv,
            dict(os.environ),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, spare, _LISTENER),
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, null, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setpgroup=0,
        )
    finally:
        for descriptor in (log, null, spare):
            os.close(descriptor)
    try:
        files.write(f"/proc/{pid}/oom_score_adj", b"%d" % min(score + 1, 1000))
    except PermissionError:  # lowering a score needs a privilege that is not always there
        pass


def _serve(flags: argparse.Namespace) -> int:
    """The shim itself: the listener is descriptor 3."""
    os.closerange(_LISTENER + 1, 4096)
    listener = socket.socket(fileno=_LISTENER)
    os.set_inheritable(_LISTENER, False)
    identity = server.Identity(
        namespace=flags.namespace,
        id=flags.id,
        bundle=os.getcwd(),
        socket_path=flags.socket or listener.getsockname(),
        ttrpc_address=os.environ.get("TTRPC_ADDRESS", ""),
        debug=flags.debug,
    )
    server.prepare()
    server.run(identity, listener)
    return 0


async def _delete(flags: argparse.Namespace) -> int:
    """Ends what is left of a container whose shim is gone.

    A runtime that fails is only told of, since containerd's shims do so; where the `whole` has to go it is a failure.
    """
    bundle = os.path.join(os.path.dirname(os.getcwd()), flags.id)
    options = read_options(bundle)
    if options is not None:  # else the runtime knows of no container of ours, and of another daemon's perhaps
        try:
            await _delete_container(flags, bundle, options)
        except errors.OrlopError as error:
            if flags.whole:
                raise
            sys.stderr.write(f"{error}\n")
    try:
        rootfs.unmount_all(os.path.join(bundle, "rootfs"))
    except OSError as error:
        sys.stderr.write(f"cannot unmount the rootfs: {error}\n")
    try:
        pid = int(files.read(os.path.join(bundle, "init.pid")))
    except (OSError, ValueError):
        pid = 0
    answer = DeleteResponse(pid=pid, exit_status=_KILLED)
    answer.exited_at.seconds, answer.exited_at.nanos = divmod(time.time_ns(), 10**9)
    sys.stdout.buffer.write(answer.SerializeToString())
    return 0


async def _delete_container(flags: argparse.Namespace, bundle: str, options: Options) -> None:
    reaper = Reaper()
    reaper.install()
    runtime = runtime_of(reaper, bundle, flags.namespace, options)
    deleting = loop.create_task(runtime.delete(flags.id, force=True))
    # Whoever cuts this off tries again: a runtime that went on by itself could delete the next container of this id.
    loop.add_signal_handler(signal.SIGTERM, deleting.cancel)
    try:
        await deleting
    except loop.Cancelled:
        raise SystemExit("told to end") from None


async def _info() -> int:
    given = Any.FromString(sys.stdin.buffer.read(_INPUT_LIMIT))
    info = RuntimeInfo(name="io.containerd.orlop.v2")
    info.version.version = _version()
    options = Options()
    if given.type_url:
        options.ParseFromString(given.value)
        info.options.type_url = Options.DESCRIPTOR.full_name
        info.options.value = given.value
    if shutil.which(options.binary_name or "runc") is None:
        raise errors.NotFound(f'failed to look up the path of "{options.binary_name or "runc"}"')
    reaper = Reaper()
    reaper.install()
    try:
        features = await runtime_of(reaper, os.getcwd(), "", options).features()
    except (errors.OrlopError, ValueError):
        features = None  # older runtimes have no such command
    if features is not None:
        info.features.type_url = _FEATURES_URL
        info.features.value = json.dumps(features).encode()
    sys.stdout.buffer.write(info.SerializeToString())
    return 0


def _bootstrap_params(given: bytes, flags: argparse.Namespace) -> BootstrapParams | None:
    """The parameters on stdin; None where there are none, or the runtime's options alone as containerd 1 sends them."""
    if not given or "MAX_SHIM_VERSION" not in os.environ:
        return None
    try:
        params = BootstrapParams.FromString(given)
    except DecodeError:
        return None
    if "/" in params.instance_id or params.instance_id.startswith("containerd."):
        return None  # an Any: its first field is a type URL
    for name, found, wanted in (
        ("instance id", params.instance_id, flags.id),
        ("namespace", params.namespace, flags.namespace),
    ):
        if found != wanted:
            raise errors.InvalidArgument(f"bootstrap {name} {found!r} is not {wanted!r}")
    return params


def _answer(path: str, version: int) -> str:
    """The address, in JSON for daemons that know of versions."""
    address = f"unix://{path}"
    if not version:
        return address
    return json.dumps({"version": version, "address": address, "protocol": "ttrpc"}, separators=(",", ":"))


def _version() -> str:
    from importlib.metadata import version

    return version("orlop")


if __name__ == "__main__":
    main()
