"""What is read of control groups: trees as kernels show them, of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from orlop.api.cgroups1 import metrics_pb2 as v1
from orlop.api.cgroups2 import metrics_pb2 as v2
from orlop.shim.cgroup import Cgroup
from orlop.shim.metrics import stats_of

UNLIMITED = (1 << 64) - 1

UNIFIED = {
    "pids.current": "3\n",
    "pids.max": "max\n",
    "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 7\nnr_throttled 2\nthrottled_usec 90\n",
    "memory.stat": "anon 4096\nfile 8192\nkernel_stack 16384\nslab 100\npgfault 12\nnew_counter_of_tomorrow 1\n",
    "memory.current": "12345\n",
    "memory.max": "67108864\n",
    "memory.peak": "23456\n",
    "memory.swap.current": "1\n",
    "memory.swap.max": "max\n",
    "memory.events": "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 0\n",
    "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n253:1 rbytes=7\n",
}


def tree(root: Path, files: dict[str, str]) -> str:
    root.mkdir(parents=True)
    for name, content in files.items():
        (root / name).write_text(content)
    return str(root)


def test_a_unified_group_is_read_whole(tmp_path: Path) -> None:
    found = stats_of(Cgroup(unified=tree(tmp_path / "group", UNIFIED)))
    assert isinstance(found, v2.Metrics)
    assert (found.pids.current, found.pids.limit) == (3, UNLIMITED)
    assert (found.cpu.usage_usec, found.cpu.user_usec, found.cpu.system_usec) == (1500, 1000, 500)
    assert (found.cpu.nr_periods, found.cpu.nr_throttled, found.cpu.throttled_usec) == (7, 2, 90)
    assert (found.memory.anon, found.memory.file, found.memory.pgfault) == (4096, 8192, 12)
    assert (found.memory.usage, found.memory.usage_limit, found.memory.max_usage) == (12345, 67108864, 23456)
    assert (found.memory.swap_usage, found.memory.swap_limit) == (1, UNLIMITED)
    assert (found.memory_events.max, found.memory_events.oom, found.memory_events.oom_kill) == (2, 3, 4)
    assert [(entry.major, entry.minor, entry.rbytes, entry.wios) for entry in found.io.usage] == [
        (8, 0, 1, 4), (253, 1, 7, 0),
    ]  # fmt: skip


def test_controllers_of_version_1_are_read_each_from_its_hierarchy(tmp_path: Path) -> None:
    controllers = {
        "pids": tree(tmp_path / "pids", {"pids.current": "2\n", "pids.max": "max\n"}),
        "cpuacct": tree(
            tmp_path / "cpuacct",
            {"cpuacct.usage": "99\n", "cpuacct.usage_percpu": "40 59 \n", "cpuacct.stat": "user 1\nsystem 2\n"},
        ),
        "memory": tree(
            tmp_path / "memory",
            {
                "memory.stat": "cache 1\nrss 2\ntotal_rss 3\npgpgin 4\n",
                "memory.usage_in_bytes": "5\n",
                "memory.limit_in_bytes": "6\n",
                "memory.oom_control": "oom_kill_disable 0\nunder_oom 1\noom_kill 8\n",
            },
        ),
    }
    found = stats_of(Cgroup(controllers=controllers))
    assert isinstance(found, v1.Metrics)
    assert (found.pids.current, found.pids.limit) == (2, 0)
    assert (found.cpu.usage.total, list(found.cpu.usage.per_cpu)) == (99, [40, 59])
    assert (found.memory.cache, found.memory.rss, found.memory.total_rss, found.memory.pg_pg_in) == (1, 2, 3, 4)
    assert (found.memory.usage.usage, found.memory.usage.limit) == (5, 6)
    assert (found.memory_oom_control.under_oom, found.memory_oom_control.oom_kill) == (1, 8)


@pytest.mark.parametrize("content", ["", "\n", "usage_usec\n", "usage_usec x\n", "usage_usec -1\n", "\x00"])
def test_counters_that_cannot_be_read_are_left_out(tmp_path: Path, content: str) -> None:
    files = dict.fromkeys(UNIFIED, content) | {"io.stat": ""}
    found = stats_of(Cgroup(unified=tree(tmp_path / "group", files)))
    assert isinstance(found, v2.Metrics)
    assert found.cpu.usage_usec == found.memory.usage == 0
    gone = stats_of(Cgroup(unified=str(tmp_path / "gone")))
    assert isinstance(gone, v2.Metrics)
    assert not gone.io.usage
