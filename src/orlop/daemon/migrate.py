"""Older configurations, brought to version 4, as containerd 2.4 brings them.

Everything here works on the document as TOML has it. Each step is from one version to the next; running them on a
document that is at version 4 already changes nothing.
"""

from __future__ import annotations

import logging
from typing import Any

from orlop.core import platform

log = logging.getLogger(__name__)

Document = dict[str, Any]

VERSION = 4

CRI = "io.containerd.grpc.v1.cri"
CRI_IMAGES = "io.containerd.cri.v1.images"
CRI_RUNTIME = "io.containerd.cri.v1.runtime"
GRPC = "io.containerd.server.v1.grpc"
GRPC_TCP = "io.containerd.server.v1.grpc-tcp"
TTRPC = "io.containerd.server.v1.ttrpc"
DEBUG = "io.containerd.server.v1.debug"
METRICS = "io.containerd.server.v1.metrics"
PROMETHEUS = "io.containerd.metrics.v1.grpc-prometheus"

_SHORT_NAMES = {
    "cri": CRI,
    "cgroups": "io.containerd.monitor.v1.cgroups",
    "linux": "io.containerd.runtime.v1.linux",
    "scheduler": "io.containerd.gc.v1.scheduler",
    "bolt": "io.containerd.metadata.v1.bolt",
    "task": "io.containerd.runtime.v2.task",
    "opt": "io.containerd.internal.v1.opt",
    "restart": "io.containerd.internal.v1.restart",
    "tracing": "io.containerd.internal.v1.tracing",
    "otlp": "io.containerd.tracing.processor.v1.otlp",
    **{
        name: f"io.containerd.snapshotter.v1.{name}"
        for name in ("aufs", "btrfs", "devmapper", "native", "overlayfs", "zfs")
    },
}
_MOVED = {
    "io.containerd.monitor.v1.cgroups": "io.containerd.monitor.task.v1.cgroups",
    "io.containerd.internal.v1.restart": "io.containerd.monitor.container.v1.restart",
}
_CRI_STREAMING = (
    "disable_tcp_service",
    "stream_server_address",
    "stream_server_port",
    "stream_idle_timeout",
    "enable_tls_streaming",
    "x509_key_pair_streaming",
)
_CRI_IMAGES_KEYS = (
    "registry",
    "image_decryption",
    "max_concurrent_downloads",
    "image_pull_progress_timeout",
    "image_pull_with_sync_fs",
    "stats_collect_period",
)
_CRI_SNAPSHOT_KEYS = ("snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers")
_TLS_KEYS = {
    "tcp_tls_ca": "tls_ca",
    "tcp_tls_cert": "tls_cert",
    "tcp_tls_key": "tls_key",
    "tcp_tls_common_name": "tls_common_name",
}
_SIZE_KEYS = ("max_recv_message_size", "max_send_message_size")


def version_of(document: Document) -> int:
    """The version a document has; one that says none, or 0, is of version 1."""
    version = document.get("version", 0)
    return version if isinstance(version, int) and version > 0 else 1


def migrate(document: Document) -> Document:
    """`document` at version 4. The argument is not changed."""
    result: Document = _copy(document)
    version = version_of(result)
    if version < 2:
        _name_plugins_in_full(result)
    if version < VERSION:
        _move_plugins(result)
        _move_servers(result)
        result["version"] = VERSION
    return result


def full_name(plugin: str) -> str:
    """The full name of a plugin that version 1 named shortly."""
    if "." in plugin:
        return plugin
    if plugin in _SHORT_NAMES:
        return _SHORT_NAMES[plugin]
    if plugin.endswith("-service"):
        return f"io.containerd.service.v1.{plugin}"
    full = f"io.containerd.grpc.v1.{plugin}"
    log.warning("Ambiguous %s plugin in v1 config, treating as %s", plugin, full)
    return full


def _name_plugins_in_full(document: Document) -> None:
    if "plugins" in document:
        document["plugins"] = {full_name(name): value for name, value in document["plugins"].items()}
    for name in ("disabled_plugins", "required_plugins"):
        if name in document:
            document[name] = [full_name(plugin) for plugin in document[name]]


def _move_plugins(document: Document) -> None:
    plugins = document.get("plugins")
    if not plugins:
        return
    for old, new in _MOVED.items():
        if old in plugins:
            plugins.setdefault(new, plugins[old])
            del plugins[old]
    if CRI in plugins:
        _split_cri(plugins)
    task = plugins.get("io.containerd.runtime.v2.task")
    if task is not None and "sched_core" in task and task.pop("sched_core") is True:
        environment = plugins.setdefault("io.containerd.shim.v1.manager", {}).setdefault("env", [])
        if "SCHED_CORE=1" not in environment:
            environment.append("SCHED_CORE=1")


def _split_cri(plugins: Document) -> None:
    """The CRI's one section becomes three: images, runtime, and what is left of itself for streaming."""
    source = plugins.pop(CRI)
    streaming = {name: source[name] for name in _CRI_STREAMING if name in source}
    if streaming:
        plugins[CRI] = streaming
    images = _cri_images(source, plugins.get(CRI_IMAGES, {}))
    if images:
        plugins[CRI_IMAGES] = images
    runtime = _cri_runtime(source, plugins.get(CRI_RUNTIME, {}))
    if runtime:
        plugins[CRI_RUNTIME] = runtime


def _cri_images(source: Document, target: Document) -> Document:
    if "sandbox_image" in source:
        target.setdefault("pinned_images", {})["sandbox"] = source["sandbox_image"]
    target.update({name: source[name] for name in _CRI_IMAGES_KEYS if name in source})
    containerd = source.get("containerd", {})
    target.update({name: containerd[name] for name in _CRI_SNAPSHOT_KEYS if name in containerd})
    for name, runtime in containerd.get("runtimes", {}).items():
        if runtime.get("snapshotter"):
            target.setdefault("runtime_platforms", {})[name] = {
                "platform": str(platform.host()),
                "snapshotter": runtime["snapshotter"],
            }
    return target


def _cri_runtime(source: Document, target: Document) -> Document:
    elsewhere = {"cni", "containerd", "sandbox_image", *_CRI_IMAGES_KEYS, *_CRI_STREAMING}
    for name, value in source.items():
        if name not in elsewhere:
            target.setdefault(name, value)
    if source.get("cni"):
        cni = target.setdefault("cni", {})
        for name, value in source["cni"].items():
            if name == "bin_dir":
                if not cni.get("bin_dirs"):
                    cni["bin_dirs"] = [value]
            else:
                cni.setdefault(name, value)
    containerd = {name: value for name, value in source.get("containerd", {}).items() if name not in _CRI_SNAPSHOT_KEYS}
    for name, value in containerd.items():
        target.setdefault("containerd", {}).setdefault(name, value)
    return target


def _move_servers(document: Document) -> None:
    """The sections of the sockets become the sections of their plugins; a plugin's own section wins."""
    plugins = document.setdefault("plugins", {})
    grpc = document.pop("grpc", {})
    ttrpc = document.pop("ttrpc", {})
    metrics = document.pop("metrics", {})
    debug = document.get("debug", {})
    if debug.get("address"):
        _offer(plugins, DEBUG, {name: debug[name] for name in ("address", "uid", "gid") if name in debug})
    for name in ("address", "uid", "gid"):
        debug.pop(name, None)
    sizes = {name: grpc[name] for name in _SIZE_KEYS if grpc.get(name)}
    _offer(plugins, GRPC, {name: grpc[name] for name in ("address", "uid", "gid") if grpc.get(name)} | sizes)
    if grpc.get("tcp_address"):
        tls = {new: grpc[old] for old, new in _TLS_KEYS.items() if grpc.get(old)}
        _offer(plugins, GRPC_TCP, {"address": grpc["tcp_address"], **tls, **sizes})
    section = {name: ttrpc[name] for name in ("address", "uid", "gid") if ttrpc.get(name)}
    if "address" not in section and grpc.get("address"):
        section["address"] = f"{grpc['address']}.ttrpc"
        section |= {name: grpc[name] for name in ("uid", "gid") if grpc.get(name) and name not in section}
    _offer(plugins, TTRPC, section)
    if metrics.get("grpc_histogram"):
        _offer(plugins, PROMETHEUS, {"grpc_histogram": True})
    if metrics.get("address"):
        _offer(plugins, METRICS, {"address": metrics["address"]})
    for name in ("debug", "plugins"):
        if name in document and not document[name]:
            del document[name]


def _offer(plugins: Document, name: str, section: Document) -> None:
    if section:
        plugins.setdefault(name, section)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copy(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value
