"""The flags of `run` that say how a container is kept apart from its host and from others, and what it may use.

Their names are those of other container tools. `orlop.cli.isolation` makes a spec of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_NAMESPACE = "host, private, container:ID, or ns:PATH to join."

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--hostname", default="", help="The host name inside."),
    click.option("--net", "--network", "network", default="", help="The network: none, " + _NAMESPACE),
    click.option("--net-host", is_flag=True, help="Share the host's network: --net host."),
    click.option("--pid", default="", help="The pid namespace: " + _NAMESPACE),
    click.option("--ipc", default="", help="The IPC namespace: " + _NAMESPACE),
    click.option("--uts", default="", help="The namespace of host and domain name: " + _NAMESPACE),
    click.option("--cgroupns", default="", help="The cgroup namespace: " + _NAMESPACE),
    click.option("--userns", default="", help="The user namespace: host, container:ID or ns:PATH, with --uidmap."),
    click.option("--uidmap", multiple=True, help="Map users: CONTAINER:HOST:SIZE. Makes a user namespace."),
    click.option("--gidmap", multiple=True, help="Map groups; those of --uidmap where none is given."),
    click.option("--group-add", multiple=True, help="A further group, by name or number."),
    click.option("--privileged", is_flag=True, help="All capabilities and devices; no filter, nothing masked."),
    click.option("--cap-add", multiple=True, help="Add a capability: NET_ADMIN, ALL."),
    click.option("--cap-drop", multiple=True, help="Drop a capability: CHOWN, ALL."),
    click.option("--cap-ambient", multiple=True, help="A capability that other users than root get as well."),
    click.option("--security-opt", multiple=True, help="seccomp=FILE|unconfined, apparmor=PROFILE, label=CONTEXT, "
                 "no-new-privileges=false, systempaths=unconfined."),
    click.option("--device", multiple=True, help="A device: SOURCE[:PATH][:rwm]."),
    click.option("--device-cgroup-rule", multiple=True, help='Allow use of devices: "c 10:200 rwm".'),
    click.option("--ulimit", multiple=True, help="A limit of processes: NAME=SOFT[:HARD]."),
    click.option("--sysctl", multiple=True, help="A setting of the kernel, of the container's namespaces: KEY=VALUE."),
    click.option("--mount", "mount", multiple=True, help="type=bind|tmpfs,src=SOURCE,dst=TARGET[,readonly]..."),
    click.option("--tmpfs", multiple=True, help="A file system in memory: TARGET[:OPTION,...]."),
    click.option("--shm-size", default="", help="The size of /dev/shm: 64m."),
    click.option("--rootfs-propagation", default="", help="How mounts in the root spread: private, rslave, rshared."),
    click.option("--cgroup-parent", default="", help="The cgroup to be below: /path, or slice:prefix for systemd."),
    click.option("--memory-swap", default="", help="Limit memory and swap together; -1 for as much swap as there is."),
    click.option("--memory-reservation", default="", help="Memory to be left with when it runs short."),
    click.option("-c", "--cpu-shares", type=int, default=0, help="Its weight among others: 1024 is usual."),
    click.option("--cpuset-cpus", default="", help="The processors to use: 0-2,4."),
    click.option("--cpuset-mems", default="", help="The memory nodes to use."),
    click.option("--pids-limit", type=int, default=0, help="Limit processes and threads."),
    click.option("--blkio-weight", type=int, default=0, help="Its weight for block devices: 10 to 1000."),
    click.option("--device-read-bps", multiple=True, help="Limit reads of a device: PATH:RATE, as /dev/vda:1m."),
    click.option("--device-write-bps", multiple=True, help="Limit writes to a device: PATH:RATE."),
    click.option("--cgroup-conf", multiple=True, help="A file of cgroup v2: NAME=VALUE."),
    click.option("--oom-score-adj", type=int, default=None, help="How soon it is killed when memory runs out."),
)  # fmt: skip


def isolation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the flags to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
