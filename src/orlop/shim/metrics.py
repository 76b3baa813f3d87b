"""What a container's control groups have counted, in the messages of containerd's cgroup v1 and v2 metrics."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from google.protobuf.message import Message

from orlop.api.cgroups1 import metrics_pb2 as v1
from orlop.api.cgroups2 import metrics_pb2 as v2
from orlop.shim import files
from orlop.shim.cgroup import Cgroup

_UNLIMITED = (1 << 64) - 1
_V1_MEMORY = {"pg_pg_in": "pgpgin", "pg_pg_out": "pgpgout", "pg_fault": "pgfault", "pg_maj_fault": "pgmajfault",
              "hierarchical_swap_limit": "hierarchical_memsw_limit"}  # fmt: skip
_BLKIO = {
    "io_service_bytes_recursive": "blkio.throttle.io_service_bytes",
    "io_serviced_recursive": "blkio.throttle.io_serviced",
}
_TICK = 10**9 // os.sysconf("SC_CLK_TCK")


def stats_of(cgroup: Cgroup) -> Message:
    """The metrics of `cgroup`; what a kernel does not count is 0."""
    return _unified(cgroup.unified) if cgroup.unified else _version1(cgroup.controllers)


def _version1(controllers: dict[str, str]) -> v1.Metrics:
    metrics = v1.Metrics()
    # Clients read what is in these without asking whether they are there.
    for message in (metrics.pids, metrics.cpu.usage, metrics.cpu.throttling, metrics.memory.usage, metrics.blkio):
        message.SetInParent()
    if "pids" in controllers:
        metrics.pids.current = _number(controllers["pids"], "pids.current")
        limit = _number(controllers["pids"], "pids.max")
        metrics.pids.limit = 0 if limit == _UNLIMITED else limit
    if "cpuacct" in controllers:
        directory = controllers["cpuacct"]
        metrics.cpu.usage.total = _number(directory, "cpuacct.usage")
        metrics.cpu.usage.per_cpu.extend(int(word) for word in _text(directory, "cpuacct.usage_percpu").split())
        counted = _table(directory, "cpuacct.stat")
        metrics.cpu.usage.user = counted.get("user", 0) * _TICK
        metrics.cpu.usage.kernel = counted.get("system", 0) * _TICK
    if "cpu" in controllers:
        counted = _table(controllers["cpu"], "cpu.stat")
        metrics.cpu.throttling.periods = counted.get("nr_periods", 0)
        metrics.cpu.throttling.throttled_periods = counted.get("nr_throttled", 0)
        metrics.cpu.throttling.throttled_time = counted.get("throttled_time", 0)
    if "memory" in controllers:
        _memory1(metrics, controllers["memory"])
    if "blkio" in controllers:
        for field, name in _BLKIO.items():
            for line in _text(controllers["blkio"], name).splitlines():
                device, _, rest = line.partition(" ")
                operation, _, value = rest.partition(" ")
                if ":" in device and value.isdigit():
                    major, minor = device.split(":")
                    getattr(metrics.blkio, field).add(
                        op=operation, major=int(major), minor=int(minor), value=int(value)
                    )
    for kind in ("hugetlb", "rdma"):
        if kind in controllers:
            _rare1(metrics, kind, controllers[kind])
    return metrics


def _rare1(metrics: v1.Metrics, kind: str, directory: str) -> None:
    if kind == "rdma":
        _rdma(metrics.rdma.current, directory, "rdma.current")
        _rdma(metrics.rdma.limit, directory, "rdma.max")
        return
    for size in _huge_page_sizes():
        metrics.hugetlb.add(
            pagesize=size,
            usage=_number(directory, f"hugetlb.{size}.usage_in_bytes"),
            max=_number(directory, f"hugetlb.{size}.max_usage_in_bytes"),
            failcnt=_number(directory, f"hugetlb.{size}.failcnt"),
        )


def _memory1(metrics: v1.Metrics, directory: str) -> None:
    counted = _table(directory, "memory.stat")
    for field in v1.MemoryStat.DESCRIPTOR.fields:
        if field.message_type is None:
            plain = field.name.removeprefix("total_")
            name = _V1_MEMORY.get(plain, plain)
            setattr(metrics.memory, field.name, counted.get(f"total_{name}" if plain != field.name else name, 0))
    for entry, prefix in (
        (metrics.memory.usage, "memory"),
        (metrics.memory.swap, "memory.memsw"),
        (metrics.memory.kernel, "memory.kmem"),
        (metrics.memory.kernel_tcp, "memory.kmem.tcp"),
    ):
        entry.usage = _number(directory, f"{prefix}.usage_in_bytes")
        entry.limit = _number(directory, f"{prefix}.limit_in_bytes")
        entry.max = _number(directory, f"{prefix}.max_usage_in_bytes")
        entry.failcnt = _number(directory, f"{prefix}.failcnt")
    control = _table(directory, "memory.oom_control")
    metrics.memory_oom_control.oom_kill_disable = control.get("oom_kill_disable", 0)
    metrics.memory_oom_control.under_oom = control.get("under_oom", 0)
    metrics.memory_oom_control.oom_kill = control.get("oom_kill", 0)


def _unified(directory: str) -> v2.Metrics:
    metrics = v2.Metrics()
    for message in (metrics.pids, metrics.cpu, metrics.memory, metrics.io, metrics.rdma):
        message.SetInParent()
    metrics.pids.current = _number(directory, "pids.current")
    metrics.pids.limit = _number(directory, "pids.max")
    _fill(metrics.cpu, _table(directory, "cpu.stat"))
    memory = metrics.memory
    _fill(memory, _table(directory, "memory.stat"))
    memory.usage = _number(directory, "memory.current")
    memory.usage_limit = _number(directory, "memory.max")
    memory.max_usage = _number(directory, "memory.peak")
    memory.swap_usage = _number(directory, "memory.swap.current")
    memory.swap_limit = _number(directory, "memory.swap.max")
    memory.swap_max_usage = _number(directory, "memory.swap.peak")
    _fill(metrics.memory_events, _table(directory, "memory.events"))
    for line in _text(directory, "io.stat").splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        entry = metrics.io.usage.add(major=int(major), minor=int(minor))
        for pair in pairs:
            key, _, value = pair.partition("=")
            if key in ("rbytes", "wbytes", "rios", "wios"):
                setattr(entry, key, int(value))
    for name, psi in (("cpu", metrics.cpu.psi), ("memory", metrics.memory.psi), ("io", metrics.io.psi)):
        _pressure(psi, directory, f"{name}.pressure")
    _rdma(metrics.rdma.current, directory, "rdma.current")
    _rdma(metrics.rdma.limit, directory, "rdma.max")
    for size in _huge_page_sizes():
        metrics.hugetlb.add(
            pagesize=size,
            current=_number(directory, f"hugetlb.{size}.current"),
            max=_number(directory, f"hugetlb.{size}.max"),
            failcnt=_table(directory, f"hugetlb.{size}.events").get("max", 0),
        )
    return metrics


def _pressure(psi: v2.PSIStats, directory: str, name: str) -> None:
    """Reads what the kernel says of waiting: a line of shares and a total for some and for all of the tasks."""
    for line in _text(directory, name).splitlines():
        kind, _, rest = line.partition(" ")
        if kind in ("some", "full"):
            data = getattr(psi, kind)
            data.SetInParent()
            for pair in rest.split():
                key, _, value = pair.partition("=")
                with contextlib.suppress(ValueError, AttributeError):
                    setattr(data, key, int(value) if key == "total" else float(value))


def _rdma(entries: Any, directory: str, name: str) -> None:
    for line in _text(directory, name).splitlines():
        device, _, rest = line.partition(" ")
        counted = dict(pair.partition("=")[::2] for pair in rest.split())
        handles, objects = (_limited(counted.get(key, "")) for key in ("hca_handle", "hca_object"))
        entries.add(device=device, hca_handles=handles, hca_objects=objects)


def _limited(text: str) -> int:
    """A number of 32 bits; the largest where there is no limit."""
    return (1 << 32) - 1 if text == "max" else min(int(text), (1 << 32) - 1) if text.isdigit() else 0


def _huge_page_sizes() -> list[str]:
    """The sizes of huge pages here as control groups name them: 2MB, 1GB."""
    try:
        names = os.listdir("/sys/kernel/mm/hugepages")
    except OSError:
        return []
    sizes = []
    for name in sorted(names):  # hugepages-2048kB
        size, unit = int(name.rpartition("-")[2].removesuffix("kB")), 0
        while size % 1024 == 0:
            size, unit = size // 1024, unit + 1
        sizes.append(f"{size}{'KMGT'[unit]}B")
    return sizes


def _fill(message: Message, counted: dict[str, int]) -> None:
    for field in message.DESCRIPTOR.fields:
        if field.name in counted:
            setattr(message, field.name, counted[field.name])


def _table(directory: str, name: str) -> dict[str, int]:
    table = {}
    for line in _text(directory, name).splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            table[key] = int(value)
    return table


def _number(directory: str, name: str) -> int:
    text = _text(directory, name).strip()
    if text == "max":
        return _UNLIMITED
    return int(text) if text.isdigit() else 0


def _text(directory: str, name: str) -> str:
    try:
        return files.read(os.path.join(directory, name)).decode("ascii", "replace")
    except OSError:  # a counter that this kernel lacks, or a group that is gone
        return ""
