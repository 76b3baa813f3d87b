"""What is read of control groups: trees as kernels show them, of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from orlop.api.cgroups1 import metrics_pb2 as v1
from orlop.api.cgroups2 import metrics_pb2 as v2
from orlop.shim.cgroup import Cgroup
from orlop.shim.metrics import stats_of
from orlop.shim.totals import sum_of

UNLIMITED = (1 << 64) - 1
HUGE = Path("/sys/kernel/mm/hugepages")

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
    "cpu.pressure": "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\n",
    "io.pressure": "some avg10=x total=y\nof tomorrow=1\n",
    "rdma.current": "mlx4_0 hca_handle=2 hca_object=2000\n",
    "rdma.max": "mlx4_0 hca_handle=3 hca_object=max\n",
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
    assert (found.cpu.psi.some.avg10, found.cpu.psi.some.total, found.cpu.psi.full.total) == (1.5, 77, 5)
    assert found.memory.psi.some.total == 9
    assert (found.io.psi.some.avg10, found.io.psi.some.total) == (0, 0)
    assert [(e.device, e.hca_handles, e.hca_objects) for e in found.rdma.current] == [("mlx4_0", 2, 2000)]
    assert [(e.device, e.hca_handles, e.hca_objects) for e in found.rdma.limit] == [("mlx4_0", 3, (1 << 32) - 1)]


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


def test_pages_of_each_size_that_the_host_has_are_counted(tmp_path: Path) -> None:
    sizes = [int(name.name.removeprefix("hugepages-").removesuffix("kB")) for name in HUGE.glob("*")]
    called = {2048: "2MB", 1 << 20: "1GB", 64: "64KB"}
    names = [called[size] for size in sizes]
    two = {f"hugetlb.{name}.{key}": value for name in names
           for key, value in (("current", "4096\n"), ("max", "max\n"), ("events", "max 3\n"))}  # fmt: skip
    one = {
        f"hugetlb.{name}.{key}": "7\n" for name in names for key in ("usage_in_bytes", "max_usage_in_bytes", "failcnt")
    }
    found = stats_of(Cgroup(unified=tree(tmp_path / "two", two)))
    assert isinstance(found, v2.Metrics)
    assert {(e.pagesize, e.current, e.max, e.failcnt) for e in found.hugetlb} == {
        (name, 4096, UNLIMITED, 3) for name in names
    }
    older = stats_of(Cgroup(controllers={"hugetlb": tree(tmp_path / "one", one)}))
    assert isinstance(older, v1.Metrics)
    assert {(e.pagesize, e.usage, e.max, e.failcnt) for e in older.hugetlb} == {(name, 7, 7, 7) for name in names}


def test_what_clients_read_unasked_is_there_though_nothing_is_counted(tmp_path: Path) -> None:
    one = stats_of(Cgroup(controllers={"pids": tree(tmp_path / "pids", {})}))
    assert isinstance(one, v1.Metrics)
    assert all(one.HasField(name) for name in ("pids", "cpu", "memory", "blkio"))
    assert one.cpu.HasField("usage")
    assert one.cpu.HasField("throttling")
    assert one.memory.HasField("usage")
    two = stats_of(Cgroup(unified=tree(tmp_path / "two", {})))
    assert isinstance(two, v2.Metrics)
    assert all(two.HasField(name) for name in ("pids", "cpu", "memory", "io"))


def test_groups_are_added_up(tmp_path: Path) -> None:
    first = stats_of(Cgroup(unified=tree(tmp_path / "first", UNIFIED)))
    second = stats_of(
        Cgroup(unified=tree(tmp_path / "second", UNIFIED | {"pids.max": "5\n", "io.stat": "253:1 wios=1\n"}))
    )
    whole = sum_of([first, second])
    assert isinstance(whole, v2.Metrics)
    assert (whole.pids.current, whole.pids.limit) == (6, UNLIMITED)
    assert (whole.cpu.usage_usec, whole.memory.usage, whole.memory.usage_limit) == (3000, 2 * 12345, 2 * 67108864)
    assert [(e.major, e.minor, e.rbytes, e.wios) for e in whole.io.usage] == [(8, 0, 1, 4), (253, 1, 7, 1)]
    assert (whole.cpu.psi.some.avg10, whole.cpu.psi.some.total) == (0, 154)
    usage = v1.Metrics()
    usage.cpu.usage.per_cpu.extend([1, 2])
    other = v1.Metrics()
    other.cpu.usage.per_cpu.extend([10, 20, 30])
    both = sum_of([usage, other])
    assert isinstance(both, v1.Metrics)
    assert list(both.cpu.usage.per_cpu) == [11, 22, 30]


@pytest.mark.parametrize("content", ["", "\n", "usage_usec\n", "usage_usec x\n", "usage_usec -1\n", "\x00"])
def test_counters_that_cannot_be_read_are_left_out(tmp_path: Path, content: str) -> None:
    files = dict.fromkeys(UNIFIED, content) | {"io.stat": ""}
    found = stats_of(Cgroup(unified=tree(tmp_path / "group", files)))
    assert isinstance(found, v2.Metrics)
    assert found.cpu.usage_usec == found.memory.usage == 0
    gone = stats_of(Cgroup(unified=str(tmp_path / "gone")))
    assert isinstance(gone, v2.Metrics)
    assert not gone.io.usage
