"""The daemon's configuration: TOML files of version 4, older ones migrated, imports merged.

Layout and rules are containerd's, so that a file written for it can be used. An unknown key is a warning that names
the nearest key there is; a wrong type is an error that names file, key and what was expected.
"""

from __future__ import annotations

import glob
import logging
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from orlop.core import duration
from orlop.daemon import build
from orlop.daemon.migrate import VERSION, migrate, version_of
from orlop.errors import InvalidArgument, OrlopError, Unknown

log = logging.getLogger(__name__)

S = TypeVar("S", bound=msgspec.Struct)
Document = dict[str, Any]

GRPC = "io.containerd.server.v1.grpc"
TTRPC = "io.containerd.server.v1.ttrpc"

DEFAULT_TIMEOUTS = {
    "io.containerd.timeout.bolt.open": "0s",
    "io.containerd.timeout.cri.defercleanup": "1m0s",
    "io.containerd.timeout.metrics.shimstats": "2s",
    "io.containerd.timeout.shim.cleanup": "5s",
    "io.containerd.timeout.shim.load": "5s",
    "io.containerd.timeout.shim.shutdown": "3s",
    "io.containerd.timeout.task.state": "2s",
}

_LEGACY = {
    "grpc": (
        "address", "tcp_address", "tcp_tls_ca", "tcp_tls_cert", "tcp_tls_key", "tcp_tls_common_name", "uid", "gid",
        "max_recv_message_size", "max_send_message_size",
    ),
    "ttrpc": ("address", "uid", "gid"),
    "metrics": ("address", "grpc_histogram"),
    "debug": ("address", "uid", "gid"),
}  # fmt: skip
"""Keys that only versions before 4 had; migration moves them."""


class Debug(msgspec.Struct):
    level: str = ""
    format: str = ""
    log_trace_id: bool = False


class Cgroup(msgspec.Struct):
    path: str = ""


class ProxyPlugin(msgspec.Struct):
    """A plugin that another process serves on a socket."""

    type: str = ""
    address: str = ""
    platform: str = ""
    exports: dict[str, str] = msgspec.field(default_factory=dict)
    capabilities: list[str] = msgspec.field(default_factory=list)


class StreamProcessor(msgspec.Struct):
    """A program that turns a stream of one of the media types `accepts` into one of `returns`."""

    accepts: list[str] = msgspec.field(default_factory=list)
    returns: str = ""
    path: str = ""
    args: list[str] = msgspec.field(default_factory=list)
    env: list[str] = msgspec.field(default_factory=list)


class Config(msgspec.Struct, dict=True):
    """The whole configuration. `plugins` has each plugin's section as the file has it; see `section`."""

    version: int = VERSION
    root: str = build.ROOT
    state: str = build.STATE
    temp: str = ""
    plugin_dir: str = ""
    disabled_plugins: list[str] = msgspec.field(default_factory=list)
    required_plugins: list[str] = msgspec.field(default_factory=list)
    oom_score: int = 0
    imports: list[str] = msgspec.field(default_factory=list)
    debug: Debug = msgspec.field(default_factory=Debug)
    plugins: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    cgroup: Cgroup = msgspec.field(default_factory=Cgroup)
    timeouts: dict[str, str] = msgspec.field(default_factory=lambda: dict(DEFAULT_TIMEOUTS))
    proxy_plugins: dict[str, ProxyPlugin] = msgspec.field(default_factory=dict)
    stream_processors: dict[str, StreamProcessor] = msgspec.field(default_factory=dict)

    def section(self, uri: str, type: type[S], *, warn: bool = True) -> S:
        """The section of plugin `uri`. Raises InvalidArgument if a value has another type than the plugin expects.

        Warns of keys that the plugin does not know, unless told not to.
        """
        raw = self.plugins.get(uri, {})
        for path, near in unknown_keys(raw, type) if warn else ():
            log.warning("Ignoring unknown key in TOML for plugin", extra={"fields": _about(path, near, plugin=uri)})
        return _convert(raw, type, self.source, f"plugins.'{uri}'.")

    @property
    def source(self) -> str:
        """The file this was loaded from, for messages; no key of the configuration, hence no field."""
        return str(self.__dict__.get("source", "the configuration"))

    def timeouts_in_seconds(self) -> dict[str, float]:
        return {name: _timeout(name, text) for name, text in {**DEFAULT_TIMEOUTS, **self.timeouts}.items()}

    def validate(self) -> None:
        """Raises InvalidArgument for what no daemon can be started with."""
        if not self.root:
            raise InvalidArgument.verbatim("root must be specified")
        if not self.state:
            raise InvalidArgument.verbatim("state must be specified")
        if os.path.realpath(self.root) == os.path.realpath(self.state):
            raise InvalidArgument.verbatim("root and state must be different paths")
        for kind in ("disabled", "required"):
            for uri in getattr(self, f"{kind}_plugins"):
                if "." not in uri:
                    raise InvalidArgument.verbatim(f'invalid {kind} plugin URI "{uri}" expect io.containerd.x.vx')
        self.timeouts_in_seconds()


def load(path: str | os.PathLike[str], *, follow_imports: bool = True) -> Config:
    """The configuration in `path` and what it imports.

    Raises Unknown if a file cannot be read, InvalidArgument if one does not parse or holds what it may not.
    """
    document = load_document(path, follow_imports=follow_imports)
    config = _convert(document, Config, str(path))
    config.__dict__["source"] = str(path)
    config.validate()
    return config


def load_document(path: str | os.PathLike[str], *, follow_imports: bool = True) -> Document:
    """As `load`, but what the files say and no more: without defaults."""
    merged: Document = {}
    loaded: set[str] = set()
    pending = [str(path)]
    while pending:
        current = pending.pop(0)
        identity = os.path.realpath(current)
        if identity in loaded:
            continue
        loaded.add(identity)
        document = _load_file(current)
        _merge(merged, document)
        if follow_imports:
            pending += _imports(current, document.get("imports", []))
    merged["version"] = VERSION
    return merged


def unknown_keys(document: Mapping[str, Any], type: type[msgspec.Struct]) -> list[tuple[str, str]]:
    """The keys of `document` that `type` does not have, each as dotted path and the nearest known key (or empty)."""
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(type)}
    found: list[tuple[str, str]] = []
    for name, value in document.items():
        if name not in fields:
            found.append((name, _nearest(name, fields)))
        elif isinstance(value, Mapping):
            found += [(f"{name}.{path}", near) for path, near in _unknown_within(value, fields[name])]
    return found


def _unknown_within(value: Mapping[str, Any], type: Any) -> list[tuple[str, str]]:
    if isinstance(type, _STRUCT_META):
        return unknown_keys(value, type)
    if get_origin(type) is dict and isinstance(get_args(type)[1], _STRUCT_META):
        inner = get_args(type)[1]
        return [
            (f"{key}.{path}", near)
            for key, item in value.items()
            if isinstance(item, Mapping)
            for path, near in unknown_keys(item, inner)
        ]
    return []


_STRUCT_META = type(msgspec.Struct)


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib

    return next(iter(difflib.get_close_matches(name, list(known), 1)), "")


def _load_file(path: str) -> Document:
    try:
        document = tomllib.loads(Path(path).read_bytes().decode())
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise Unknown(f"open {path}: {reason}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument.verbatim(f"failed to load TOML from {path}: failed to unmarshal TOML: {error}") from None
    except RecursionError:
        raise InvalidArgument.verbatim(f"failed to load TOML from {path}: values are nested too deeply") from None
    version = document.get("version", 0)
    if isinstance(version, bool) or not isinstance(version, int):
        raise InvalidArgument.verbatim(f"failed to load TOML from {path}: version: expected int, got {_kind(version)}")
    if version > VERSION:
        raise InvalidArgument.verbatim(
            f"failed to load TOML from {path}: expected containerd config version "
            f"equal to or less than `{VERSION}`, got `{version}`"
        )
    version = version_of(document)
    for name, near in _unknown_in_file(document, version):
        log.warning("Ignoring unknown key in TOML", extra={"fields": _about(name, near, file=path)})
    _check_tables(document, path)
    if version < VERSION:
        document = migrate(document)
        log.warning(
            "Configuration migrated from version %d, use `orlopd config migrate` to avoid migration",
            version,
            extra={"fields": {"file": path}},
        )
    _convert(document, Config, path)
    return document


def _unknown_in_file(document: Document, version: int) -> list[tuple[str, str]]:
    old = _LEGACY if version < VERSION else {}
    found: list[tuple[str, str]] = []
    for name, near in unknown_keys(document, Config):
        section, _, key = name.partition(".")
        if section not in old:
            found.append((name, near))
        elif not key and isinstance(document[section], dict):
            odd = [one for one in document[section] if one not in old[section]]
            found += [(f"{section}.{one}", _nearest(one, old[section])) for one in odd]
        elif key not in old[section]:
            found.append((name, near))
    return found


def _check_tables(document: Document, path: str) -> None:
    """What migration and merging take for granted: tables are tables, and lists hold text."""
    for name in ("plugins", "debug", "cgroup", "timeouts", "proxy_plugins", "stream_processors", *_LEGACY):
        _expect(document.get(name, {}), dict, "table", name, path)
    for name, section in document.get("plugins", {}).items():
        _expect(section, dict, "table", f"plugins.'{name}'", path)
    for name in ("disabled_plugins", "required_plugins", "imports"):
        _expect(document.get(name, []), list, "array", name, path)
        for item in document.get(name, []):
            _expect(item, str, "string", f"{name}[]", path)
    cri = document.get("plugins", {}).get("io.containerd.grpc.v1.cri", document.get("plugins", {}).get("cri", {}))
    for name in ("containerd", "cni"):
        _expect(cri.get(name, {}), dict, "table", f"plugins.cri.{name}", path)
    runtimes = cri.get("containerd", {}).get("runtimes", {})
    _expect(runtimes, dict, "table", "plugins.cri.containerd.runtimes", path)
    for name, runtime in runtimes.items():
        _expect(runtime, dict, "table", f"plugins.cri.containerd.runtimes.{name}", path)


def _expect(value: Any, type: type, word: str, key: str, path: str) -> None:
    if not isinstance(value, type):
        raise InvalidArgument.verbatim(f"failed to load TOML from {path}: {key}: expected {word}, got {_kind(value)}")


def _kind(value: Any) -> str:
    names = {bool: "boolean", int: "int", float: "float", str: "string", list: "array", dict: "table"}
    return names.get(type(value), type(value).__name__)


def _imports(parent: str, patterns: list[str]) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        path = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(parent)), pattern))
        found += sorted(glob.glob(path)) if "*" in path else [path]
    return found


def _merge(into: Document, other: Document) -> None:
    for name, value in other.items():
        present = into.get(name)
        if isinstance(value, list) and isinstance(present, list):
            into[name] = present + [item for item in value if item not in present]
        elif name in ("timeouts", "proxy_plugins", "stream_processors") and present:
            present.update(value)
        elif isinstance(value, dict) and isinstance(present, dict):
            _merge_section(present, value)
        else:
            into[name] = value


def _merge_section(into: Document, other: Document) -> None:
    """Within plugins' sections a later file wins key by key; a list there replaces."""
    for name, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge_section(into[name], value)
        else:
            into[name] = value


def _convert(document: Document, type: type[S], where: str, section: str = "") -> S:
    try:
        return msgspec.convert(document, type, strict=True)
    except msgspec.ValidationError as error:
        reason, _, at = str(error).partition(" - at `$")
        key = at.rstrip("`").lstrip(".") or "document"
        text = reason[:1].lower() + reason[1:].replace("`", "")
        raise InvalidArgument.verbatim(f"failed to load TOML from {where}: {section}{key}: {text}") from None


def _timeout(name: str, text: str) -> float:
    try:
        return duration.parse(text) / 1e9
    except OrlopError as error:
        raise error.within(f"timeouts.'{name}'") from None


def _about(key: str, near: str, **more: str) -> dict[str, str]:
    return {**more, "key": key, **({"nearest": near} if near else {})}
