"""Out-of-memory kills: an eventfd on `memory.oom_control` (v1), all `memory.events` polled as one set (v2)."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orlop.shim import files, loop
from orlop.shim.cgroup import Cgroup

OomRecord = tuple[str, str, int, int, bool]


@dataclass(slots=True)
class _Watched:
    path: str
    descriptor: int
    """The eventfd, or the open `memory.events`."""
    kills: int
    is_unified: bool


class OomWatcher:
    """Calls `tell` with a container's id once for each kill."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._watched: dict[str, _Watched] = {}
        self._polled: dict[int, str] = {}
        self._poll: select.epoll | None = None

    def record(self) -> list[OomRecord]:
        """What `take_up` takes up, whose descriptors must stay open."""
        return [(id, w.path, w.descriptor, w.kills, w.is_unified) for id, w in self._watched.items()]

    def take_up(self, records: Sequence[OomRecord]) -> None:
        """Goes on watching what an earlier watcher watched."""
        for id, path, descriptor, kills, is_unified in records:
            self._watch(id, _Watched(path, descriptor, kills, is_unified))

    @property
    def own(self) -> set[int]:
        """The descriptor that `take_up` makes anew."""
        return set() if self._poll is None else {self._poll.fileno()}

    def watched(self) -> dict[int, int]:
        """The events that are waited for, by descriptor."""
        events = {True: select.EPOLLPRI, False: select.EPOLLIN}
        return {watched.descriptor: events[watched.is_unified] for watched in self._watched.values()}

    def add(self, id: str, cgroup: Cgroup) -> None:
        """Watches `cgroup`; a host that cannot tell of kills is not watched."""
        with contextlib.suppress(OSError):
            if cgroup.unified:
                self._add_unified(id, os.path.join(cgroup.unified, "memory.events"))
            elif "memory" in cgroup.controllers:
                self._add_version1(id, cgroup.controllers["memory"])

    def check(self, id: str) -> None:
        """Looks for kills that have not been told."""
        watched = self._watched.get(id)
        if watched is None:
            return
        kills = _kills(watched.path)
        for _ in range(kills - watched.kills):
            self._tell(id)
        watched.kills = max(kills, watched.kills)

    def remove(self, id: str) -> None:
        watched = self._watched.pop(id, None)
        if watched is None:
            return
        if watched.is_unified:
            self._polled.pop(watched.descriptor, None)
            if self._poll is not None:
                self._poll.unregister(watched.descriptor)
        else:
            loop.remove_reader(watched.descriptor)
        os.close(watched.descriptor)

    def close(self) -> None:
        for id in list(self._watched):
            self.remove(id)
        if self._poll is not None:
            loop.remove_reader(self._poll.fileno())
            self._poll.close()
            self._poll = None

    def _add_version1(self, id: str, directory: str) -> None:
        path = os.path.join(directory, "memory.oom_control")
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        control = -1
        try:
            control = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            files.write(os.path.join(directory, "cgroup.event_control"), b"%d %d" % (event, control))
        except OSError:
            os.close(event)
            raise
        finally:
            if control >= 0:
                os.close(control)
        self._watch(id, _Watched(path, event, _kills(path), False))

    def _signalled(self, id: str) -> None:
        watched = self._watched[id]
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(watched.descriptor)
        if os.path.exists(watched.path):  # the removal of a group is signalled too
            self.check(id)
            # the signal comes before the kill is counted: tell of it by the count, now or when the init exits
        else:
            self.remove(id)

    def _add_unified(self, id: str, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._watch(id, _Watched(path, descriptor, _kills(path), True))

    def _watch(self, id: str, watched: _Watched) -> None:
        self._watched[id] = watched
        if not watched.is_unified:
            loop.add_reader(watched.descriptor, lambda: self._signalled(id))
            return
        if self._poll is None:
            self._poll = select.epoll()
            loop.add_reader(self._poll.fileno(), self._changed)
        self._polled[watched.descriptor] = id
        self._poll.register(watched.descriptor, select.EPOLLPRI)

    def _changed(self) -> None:
        assert self._poll is not None
        for descriptor, _ in self._poll.poll(0):
            id = self._polled.get(descriptor)
            if id is None:
                continue
            try:
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.read(descriptor, 4096)  # reading is what takes the event away
            except OSError:  # the group has gone (systemd removes an empty scope): the event would stay for ever
                self.remove(id)
                continue
            if os.path.exists(self._watched[id].path):
                self.check(id)
            else:
                self.remove(id)


def _kills(path: str) -> int:
    try:
        for line in files.read(path).splitlines():
            key, _, value = line.partition(b" ")
            if key == b"oom_kill":
                return int(value)
    except OSError:
        pass
    return 0
