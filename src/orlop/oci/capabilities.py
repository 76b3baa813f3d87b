"""Capabilities (capabilities(7)): which there are, which a container has, and how people name them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from orlop.errors import InvalidArgument

KNOWN = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
        "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
        "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
        "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
        "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
        "CHECKPOINT_RESTORE",
    )
)  # fmt: skip
"""In the order of their numbers, so that the n-th one is bit n of a set."""

DEFAULT = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
        "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
    )
)  # fmt: skip

ALL = "ALL"


def chosen(add: Iterable[str] = (), drop: Iterable[str] = (), start: Sequence[str] = DEFAULT) -> list[str]:
    """`start` with `add` and without `drop`; what is named in both stays away, unless the other one is `ALL`.

    Names come with or without `CAP_`, in any case. Raises InvalidArgument for one that is none.
    """
    added, dropped = {_named(name) for name in add}, {_named(name) for name in drop}
    own = set() if ALL in dropped else set(available() if ALL in added else start)
    own |= added - {ALL}
    own -= dropped - {ALL}
    return [name for name in KNOWN if name in own]


def available(status: Path = Path("/proc/self/status")) -> list[str]:
    """Those in this process's bounding set: nothing that it starts can have more."""
    for line in status.read_text().splitlines():
        if line.startswith("CapBnd:"):
            bits = int(line.split()[1], 16)
            return [name for number, name in enumerate(KNOWN) if bits >> number & 1]
    return list(KNOWN)


def _named(text: str) -> str:
    name = text.upper() if text.isascii() else text
    if name == ALL:
        return ALL
    name = name if name.startswith("CAP_") else f"CAP_{name}"
    if name not in KNOWN:
        raise InvalidArgument(f'capability "{text}" is unknown (capabilities(7) lists them; ALL stands for all)')
    return name
