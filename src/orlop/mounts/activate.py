"""Doing what the caller of an activation cannot: which mounts those are, and mounting them below one directory.

Mount points are `<directory>/<n>`, counted down, so that the first name is the last mounted; `<n>-type` beside each
says by what it was mounted. Whatever a crash leaves can be taken off with no more than that.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from orlop.core import clock
from orlop.core.activation import ActiveMount, MountHandler
from orlop.core.mount import Mount
from orlop.errors import OrlopError, Unimplemented
from orlop.mounts.mount import MountError, mount_all, unmount, unmount_all
from orlop.mounts.transforms import TRANSFORMS, Transform

_TYPE_SUFFIX = "-type"
_POINT = re.compile(r"[0-9]{1,6}")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Step:
    mount: Mount
    transforms: tuple[Transform, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The `count` first of `steps` are mounted here, and the next one is transformed; the rest is the caller's."""

    steps: tuple[_Step, ...]
    count: int


def plan(
    mounts: Sequence[Mount],
    handlers: Mapping[str, MountHandler],
    *,
    temporary: bool = False,
    allowed: Sequence[str] = (),
) -> Plan:
    """What is to be done for `mounts`; `allowed` as `core.activation.MountManager.activate` has it.

    Raises Unimplemented where nothing is.
    """
    steps = []
    count = -1
    for number, mount in enumerate(mounts):
        kind, transforms = mount.type, []
        while "/" in kind:
            name, _, inner = kind.partition("/")
            if name not in TRANSFORMS:
                _log.warning("mount type %r: there is no transformation %r", mount.type, name)
                break
            if not {f"{name}/*", mount.type} & set(allowed):
                count = number
            transforms.append(TRANSFORMS[name])
            kind = inner
        if temporary or (kind in handlers and kind not in allowed):
            count = number + 1
        steps.append(_Step(replace(mount, type=kind), tuple(transforms)))
    if count < 0:
        raise Unimplemented.verbatim("not implemented")
    return Plan(tuple(steps), count)


def perform(
    plan: Plan, directory: str, handlers: Mapping[str, MountHandler], roots: Sequence[str]
) -> tuple[tuple[ActiveMount, ...], tuple[Mount, ...]]:
    """Does `plan` below the fresh `directory`; returns the mounts that are in effect, and those left to the caller.

    Raises Unknown, with nothing left mounted. Blocks.
    """
    roots = (*roots, directory)
    active: list[ActiveMount] = []
    width = len(str(plan.count))
    with ExitStack() as undo:
        undo.callback(release, directory, handlers)
        for number, step in enumerate(plan.steps[: plan.count]):
            mount = _transformed(step, active, roots)
            point = os.path.join(directory, f"{plan.count - number:0{width}}")
            with open(point + _TYPE_SUFFIX, "x", opener=_private) as file:
                file.write(mount.type)
            active.append(ActiveMount(_mounted(mount, point, handlers), point, clock.now()))
        system = [step.mount for step in plan.steps[plan.count :]]
        if system:
            system[0] = _transformed(plan.steps[plan.count], active, roots)
        else:  # something must be left to mount: for containerd only where `temporary` says so
            system = [Mount("bind", active[-1].point, ("rbind",))]
        undo.pop_all()
    return tuple(active), tuple(system)


def _transformed(step: _Step, active: Sequence[ActiveMount], roots: Sequence[str]) -> Mount:
    mount = step.mount
    for transform in step.transforms:
        mount = transform(mount, active, roots)
    return mount


def _mounted(mount: Mount, point: str, handlers: Mapping[str, MountHandler]) -> Mount:
    shown = f"{{{mount.type} {mount.source} {mount.target} [{' '.join(mount.options)}]}}"
    handler = handlers.get(mount.type)
    try:
        if handler is not None:
            return handler.mount(mount, point)
        os.mkdir(point, 0o700)
        mount_all([mount], point)
    except OrlopError as error:
        raise error.within(f"mount {'handler ' if handler is not None else ''}failed {shown}") from error
    return mount


def release(directory: str, handlers: Mapping[str, MountHandler]) -> None:
    """Takes off all that is mounted below `directory`, last first, and removes it. What is gone is fine.

    Raises MountError where a mount is in use and cannot be detached.
    """
    try:
        names = sorted(name for name in os.listdir(directory) if _POINT.fullmatch(name))
    except FileNotFoundError:
        return
    for name in names:
        point = os.path.join(directory, name)
        handler = handlers.get(_type_of(point))
        try:
            if handler is not None:
                handler.unmount(point)
            else:
                unmount(point)
        except (MountError, OSError) as error:
            _log.warning("mount %s is in use, detaching it: %s", point, error)
    unmount_all(directory)
    # By name and never by tree: what is in a mount point is somebody's files.
    for name in names:
        point = os.path.join(directory, name)
        if os.path.lexists(point):
            os.rmdir(point)
    for name in os.listdir(directory):
        if name.endswith(_TYPE_SUFFIX):
            os.unlink(os.path.join(directory, name))
    os.rmdir(directory)


def _type_of(point: str) -> str:
    try:
        with open(point + _TYPE_SUFFIX) as file:
            return file.read(256)
    except FileNotFoundError:
        return ""


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
