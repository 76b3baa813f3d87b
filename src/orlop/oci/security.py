"""What keeps a container's processes in their place beside namespaces: filters, labels, and paths they may not see."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.oci import seccomp

MASKED_PATHS = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip

READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

UNCONFINED = "unconfined"
_APPARMOR = Path("/sys/module/apparmor/parameters/enabled")
_SELINUX = Path("/sys/fs/selinux/enforce")


@dataclass(frozen=True, slots=True)
class Security:
    """`seccomp` is a profile's document, `unconfined`, or None for the default one. `apparmor` names a loaded profile;
    `selinux_label` and `mount_label` are whole contexts (`user:role:type:level`)."""

    seccomp: bytes | str | None = None
    apparmor: str = ""
    selinux_label: str = ""
    mount_label: str = ""
    no_new_privileges: bool = True
    unmask_paths: bool = False

    def filter(self, capabilities: Collection[str]) -> dict[str, Any] | None:
        """The seccomp object of the spec; None where nothing is filtered."""
        if self.seccomp == UNCONFINED:
            return None
        if self.seccomp is None:
            return seccomp.default(capabilities)
        document = self.seccomp.encode() if isinstance(self.seccomp, str) else self.seccomp
        return seccomp.read(document, capabilities)

    def refuse_missing(self, *, apparmor: Path = _APPARMOR, selinux: Path = _SELINUX) -> None:
        """Raises FailedPrecondition if this kernel cannot do what is asked: it must never be left undone in silence."""
        if self.apparmor not in ("", UNCONFINED) and not _says_yes(apparmor):
            raise FailedPrecondition(
                f'AppArmor profile "{self.apparmor}": this kernel has no AppArmor, or it is off '
                f"({apparmor} does not say Y)"
            )
        if (self.selinux_label or self.mount_label) and not selinux.exists():
            raise FailedPrecondition(
                f'SELinux label "{self.selinux_label or self.mount_label}": this kernel has no SELinux, or it is off '
                f"({selinux} is not there)"
            )


def parse(options: Sequence[str], read: type[Path] = Path) -> Security:
    """As docker's `--security-opt`: `no-new-privileges[=BOOL]`, `seccomp=FILE|unconfined`, `apparmor=PROFILE`,
    `label=CONTEXT|disable`, `systempaths=unconfined`. Raises InvalidArgument."""
    values: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        match key:
            case "no-new-privileges" if value in ("", "true", "false"):
                values["no_new_privileges"] = value != "false"
            case "seccomp" if value == UNCONFINED:
                values["seccomp"] = UNCONFINED
            case "seccomp" if value:
                values["seccomp"] = _content(read(value))
            case "apparmor" if value:
                values["apparmor"] = value
            case "label" if value and value.count(":") >= 2:
                values["selinux_label"] = value
            case "label" if value == "disable":
                values["selinux_label"] = ""
            case "systempaths" if value == UNCONFINED:
                values["unmask_paths"] = True
            case _:
                raise InvalidArgument(
                    f'security option "{option}" is unknown (no-new-privileges=false, seccomp=FILE, '
                    "seccomp=unconfined, apparmor=PROFILE, label=CONTEXT, label=disable, systempaths=unconfined)"
                )
    return Security(**values)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f'seccomp profile "{path}": {(error.strerror or "").lower()}') from None


def _says_yes(path: Path) -> bool:
    try:
        return path.read_text().strip() == "Y"
    except OSError:
        return False
