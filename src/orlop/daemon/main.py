"""`orlopd`: the command line of the daemon."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from orlop.daemon import build
from orlop.errors import OrlopError

if TYPE_CHECKING:
    from orlop.daemon.config import Config


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `orlopd`; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except (OrlopError, OSError, ValueError) as error:
        sys.stderr.write(f"{build.NAME}: {error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=build.NAME, description="A container runtime daemon, wire-compatible with containerd.", allow_abbrev=False
    )
    parser.add_argument("--version", "-v", action="version", version=build.banner())
    parser.add_argument("--config", "-c", metavar="FILE", help=f"configuration file (default {build.CONFIG})")
    parser.add_argument("--log-level", "-l", metavar="LEVEL", help="trace, debug, info, warn, error, fatal or panic")
    parser.add_argument("--address", "-a", metavar="PATH", help="socket of the gRPC server")
    parser.add_argument("--root", metavar="DIR", help="directory for what lasts")
    parser.add_argument("--state", metavar="DIR", help="directory for what a reboot may lose")
    parser.set_defaults(run=_serve)
    commands = parser.add_subparsers(title="commands", metavar="")
    config = commands.add_parser("config", help="information on the configuration")
    config.set_defaults(run=lambda _: config.print_help())
    verbs = config.add_subparsers(title="commands", metavar="")
    verbs.add_parser("default", help="show the default configuration").set_defaults(run=_config_default)
    verbs.add_parser("dump", help="show the configuration as it is used").set_defaults(run=_config_dump)
    verbs.add_parser("migrate", help="show the file migrated to the newest version").set_defaults(run=_config_migrate)
    unmount = commands.add_parser("unmount", help="take off what a daemon that has ended left mounted below its root")
    unmount.set_defaults(run=_unmount)
    publish = commands.add_parser("publish", help="publish the event on standard input")
    publish.add_argument("--namespace", default="")
    publish.add_argument("--topic", default="")
    publish.set_defaults(run=_publish)
    hook = commands.add_parser("oci-hook", help="fill templates in a hook's arguments, then run it")
    hook.add_argument("arguments", nargs=argparse.REMAINDER)
    hook.set_defaults(run=_oci_hook)
    return parser


def _load(options: argparse.Namespace) -> Config:
    """The configuration as the files and the flags have it: flags win."""
    from orlop.daemon import config

    path = options.config or build.CONFIG
    loaded = config.load(path) if options.config or os.path.exists(path) else config.Config()
    if options.root:
        loaded.root = options.root
    if options.state:
        loaded.state = options.state
    loaded.root, loaded.state = os.path.abspath(loaded.root), os.path.abspath(loaded.state)
    if options.log_level:
        loaded.debug.level = options.log_level
    if options.address:
        options.address = os.path.abspath(options.address)
        grpc = loaded.plugins.setdefault(config.GRPC, {})
        grpc["address"] = options.address
        inherited: dict[str, Any] = {name: grpc[name] for name in ("uid", "gid") if name in grpc}
        loaded.plugins.setdefault(config.TTRPC, {"address": f"{options.address}.ttrpc", **inherited})
    return loaded


def _serve(options: argparse.Namespace) -> int:
    from orlop.daemon import logging, process

    process.bound_memory()
    handler = logging.set_up(options.log_level or "", "")
    try:
        config = _load(options)
        handler = logging.set_up(config.debug.level, config.debug.format)
        process.harden()
        process.raise_file_limit()
        process.apply(config)
        return _run(config)
    finally:
        handler.drain()


def _run(config: Config) -> int:
    import asyncio

    import uvloop

    from orlop.daemon import server
    from orlop.daemon.threads import Threads

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop().set_default_executor(Threads())
        runner.run(server.run(config))
    return 0


def _unmount(options: argparse.Namespace) -> None:
    from orlop.daemon.unmount import unmount

    for point in unmount(_load(options)):
        sys.stdout.write(f"{point}\n")


def _config_default(_options: argparse.Namespace) -> None:
    from orlop.daemon.config import Config

    _print_whole(Config(imports=[build.IMPORTS]))


def _config_dump(options: argparse.Namespace) -> None:
    if options.config and not os.path.exists(options.config):
        options.config = None
    with _logged(options):
        _print_whole(_load(options))


def _config_migrate(options: argparse.Namespace) -> None:
    from orlop.daemon import config, toml

    path = options.config or build.CONFIG
    if not os.path.exists(path):
        _config_default(options)
        return
    with _logged(options):
        sys.stdout.write(toml.dumps(config.load_document(path, follow_imports=False)))


@contextlib.contextmanager
def _logged(options: argparse.Namespace) -> Iterator[None]:
    """Shows warnings, which name a file and a key, as the daemon does."""
    from orlop.daemon import logging

    handler = logging.set_up(options.log_level or "", "")
    try:
        yield
    finally:
        handler.drain()


def _print_whole(config: Config) -> None:
    """Prints `config` with the section of every plugin, defaults included."""
    import msgspec

    from orlop.daemon import toml
    from orlop.daemon.server import registrations

    sections: dict[str, Any] = dict(config.plugins)
    for found in registrations():
        registration = found.registration
        if registration.config is not None:
            sections[registration.uri] = msgspec.to_builtins(config.section(registration.uri, registration.config))
    config.plugins = dict(sorted(sections.items()))
    sys.stdout.write(toml.dumps(msgspec.to_builtins(config)))


def _publish(options: argparse.Namespace) -> None:
    import asyncio

    from orlop.daemon.publish import publish

    asyncio.run(publish(options.address or build.ADDRESS, options.namespace, options.topic))


def _oci_hook(options: argparse.Namespace) -> None:
    from orlop.daemon import oci_hook

    oci_hook.run([argument for argument in options.arguments if argument != "--"])


if __name__ == "__main__":
    sys.exit(main())
