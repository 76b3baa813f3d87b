"""The directories of an image that is being made: tables of names, and attributes in arrays."""

from __future__ import annotations

from array import array
from collections.abc import Mapping

from orlop.erofs import layout

Target = int
"""What a name means: the nid of an inode, or the number of a directory, above three bits of type."""

TYPE_BITS = 3
TYPE_MASK = (1 << TYPE_BITS) - 1
ROOT = 0
"""The number of the root directory."""

_EMPTY: Mapping[bytes, Target] = {}


def target_of(number: int) -> Target:
    """What a name of the directory `number` means."""
    return number << TYPE_BITS | layout.DIRECTORY


class Directories:
    """The directories of an image, one number each; a parent's number is lower than its children's."""

    def __init__(self) -> None:
        self.modes = array("H")
        self.uids = array("I")
        self.gids = array("I")
        self.mtimes = array("q")
        self.parents = array("I")
        self.implied = bytearray()
        self.xattrs: dict[int, dict[bytes, bytes]] = {}
        self._names: list[dict[bytes, Target] | None] = []

    def __len__(self) -> int:
        return len(self._names)

    def add(self, parent: int, mode: int, uid: int, gid: int, mtime: int, *, implied: bool = False) -> int:
        """A new directory, which no name means yet. `mtime` is in nanoseconds."""
        self.parents.append(parent)
        self.modes.append(mode & 0o7777)
        self.uids.append(uid)
        self.gids.append(gid)
        self.mtimes.append(mtime)
        self.implied.append(implied)
        self._names.append(None)
        return len(self._names) - 1

    def set(self, number: int, mode: int, uid: int, gid: int, mtime: int) -> None:
        """Gives a directory the attributes of its own entry."""
        self.modes[number] = mode & 0o7777
        self.uids[number] = uid
        self.gids[number] = gid
        self.mtimes[number] = mtime
        self.implied[number] = False

    def names(self, number: int) -> dict[bytes, Target]:
        """What is in the directory, to add to. Names are of 1 to 255 bytes, without slash or NUL."""
        found = self._names[number]
        if found is None:
            found = self._names[number] = {}
        return found

    def items(self, number: int) -> Mapping[bytes, Target]:
        """What is in the directory, to look at."""
        return self._names[number] or _EMPTY

    def get(self, number: int, name: bytes) -> Target | None:
        found = self._names[number]
        return None if found is None else found.get(name)

    def drop(self, number: int) -> Mapping[bytes, Target]:
        """Empties a directory that no name means any more; returns what was in it."""
        found = self._names[number]
        self._names[number] = None
        self.xattrs.pop(number, None)
        return found or _EMPTY

    def sorted(self, number: int) -> list[bytes]:
        """The names in the directory in the order of the format, `.` and `..` among them."""
        return sorted((b".", b"..", *self.items(number)))

    def reachable(self) -> list[int]:
        """The directories that are part of the tree, parents before children."""
        found = bytearray(len(self))
        found[ROOT] = True
        order: list[int] = []
        for number in range(len(self)):
            if found[number]:
                order.append(number)
                for target in self.items(number).values():
                    if target & TYPE_MASK == layout.DIRECTORY:
                        found[target >> TYPE_BITS] = True
        return order
