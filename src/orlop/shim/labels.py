"""The labels of AppArmor and SELinux that a spec asks for, refused where this kernel cannot apply them.

Runtimes cannot be left to do it: crun passes over SELinux labels, and what the kernel answers names no profile.
"""

from __future__ import annotations

import errno
import json
import os

from orlop.errors import FailedPrecondition
from orlop.shim import files

_APPARMOR = "/sys/module/apparmor/parameters/enabled"
_PROFILES = "/sys/kernel/security/apparmor/profiles"
_SELINUX = "/sys/fs/selinux"
_MARKS = (b'"apparmorProfile"', b'"selinuxLabel"', b'"mountLabel"')
_NONE = ("", "unconfined")


def refuse_missing(
    config: bytes, *, apparmor: str = _APPARMOR, profiles: str = _PROFILES, selinux: str = _SELINUX
) -> None:
    """Raises FailedPrecondition if a container of this `config.json` would not be confined as it says."""
    if not any(mark in config for mark in _MARKS):  # most have none: what is not parsed costs no memory
        return
    try:
        spec = json.loads(config)
        process, linux = spec.get("process") or {}, spec.get("linux") or {}
        profile, labels = process.get("apparmorProfile"), (process.get("selinuxLabel"), linux.get("mountLabel"))
    except (ValueError, AttributeError):
        return  # the runtime says better what is wrong with such a document
    if isinstance(profile, str) and profile not in _NONE:
        _refuse_profile(profile, apparmor, profiles)
    for label in labels:
        if isinstance(label, str) and label:
            _refuse_label(label, selinux)


def _refuse_profile(profile: str, apparmor: str, profiles: str) -> None:
    if _read(apparmor).strip() != "Y":
        raise FailedPrecondition(
            f'AppArmor profile "{profile}": this kernel has no AppArmor, or it is off ({apparmor} does not say Y)'
        )
    loaded = [line.rpartition(" (")[0] for line in _read(profiles).splitlines()]
    if loaded and profile not in loaded and not profile.startswith(":"):  # a colon: one of another namespace
        raise FailedPrecondition(f'AppArmor profile "{profile}" is not loaded (apparmor_parser --replace loads it)')


def _refuse_label(label: str, selinux: str) -> None:
    if not os.path.exists(f"{selinux}/enforce"):
        raise FailedPrecondition(
            f'SELinux label "{label}": this kernel has no SELinux, or it is off ({selinux}/enforce is not there)'
        )
    if _read(f"{selinux}/initial_contexts/kernel").rstrip("\0") == "kernel":  # it has a whole context by any policy
        raise FailedPrecondition(f'SELinux label "{label}": no policy is loaded that would have a meaning for it')
    try:
        files.write(f"{selinux}/context", label.encode())
    except OSError as error:  # another one than this says nothing about the label: it is left to the runtime
        if error.errno == errno.EINVAL:
            raise FailedPrecondition(f'SELinux label "{label}": the policy in force does not know it') from None


def _read(path: str) -> str:
    try:
        return os.fsdecode(files.read(path))
    except OSError:
        return ""
