"""What a container may use of its host, as the runtime-spec has it (config-linux, "Control groups")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orlop.errors import InvalidArgument

PERIOD = 100_000
"""Microseconds over which a quota of processor time counts."""


@dataclass(frozen=True, slots=True)
class Throttle:
    """At most `rate` a second (bytes, or requests) to the block device."""

    major: int
    minor: int
    rate: int

    def document(self) -> dict[str, int]:
        return {"major": self.major, "minor": self.minor, "rate": self.rate}


@dataclass(frozen=True, slots=True)
class Resources:
    """Sizes are bytes, `cpus` a number of processors; 0 or empty is no limit.

    `memory_swap` is memory and swap together, -1 as much swap as there is. `unified` are files of cgroup v2, by name.
    """

    memory: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    cpus: float = 0.0
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int = 0
    blkio_weight: int = 0
    read_bytes: Sequence[Throttle] = ()
    write_bytes: Sequence[Throttle] = ()
    unified: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """`resources` of the spec, without devices. Raises InvalidArgument for limits that contradict each other."""
        self._check()
        found = {
            "memory": _set(limit=self.memory, swap=self.memory_swap, reservation=self.memory_reservation),
            "cpu": self._cpu(),
            "pids": _set(limit=self.pids),
            "blockIO": _set(
                weight=self.blkio_weight,
                throttleReadBpsDevice=[entry.document() for entry in self.read_bytes],
                throttleWriteBpsDevice=[entry.document() for entry in self.write_bytes],
            ),
            "unified": dict(self.unified),
        }
        return {name: value for name, value in found.items() if value}

    def _cpu(self) -> dict[str, Any]:
        quota = int(self.cpus * PERIOD)
        return _set(
            quota=quota,
            period=PERIOD if quota else 0,
            shares=self.cpu_shares,
            cpus=self.cpuset_cpus,
            mems=self.cpuset_mems,
        )

    def _check(self) -> None:
        if self.cpus < 0 or self.memory < 0 or self.pids < -1 or self.memory_swap < -1:
            raise InvalidArgument("limits cannot be negative")
        if self.cpus and self.cpus < 0.01:
            raise InvalidArgument(f"{self.cpus} processors: at least 0.01 are needed")
        if self.memory_swap and not self.memory:
            raise InvalidArgument("a limit of memory and swap needs one of memory")
        if 0 < self.memory_swap < self.memory:
            raise InvalidArgument("memory and swap together cannot be less than memory")
        if self.memory_reservation and self.memory and self.memory_reservation > self.memory:
            raise InvalidArgument("more memory is reserved than allowed")
        if self.blkio_weight and not 10 <= self.blkio_weight <= 1000:
            raise InvalidArgument(f"block I/O weight {self.blkio_weight}: it must be 10 to 1000")


def _set(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}
