"""What is left of a directory after a power loss, at any moment of a program that strace has watched.

Files keep what was in them when they were synced last. Names come in two extremes, since a file system may write them
at any time before it must: as they were when anything was synced last (a sync writes the whole journal of ext4 and XFS,
and in btrfs all that a name depends on), or every name as it was made. In the second, a file that was never synced is
there and empty. What a file system does lies in between. Modes are never lost.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_CALLS = (
    "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,lseek,truncate,ftruncate,fallocate,sendfile,"
    "copy_file_range,fsync,fdatasync,syncfs,sync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,"
    "rmdir,chmod,fchmod,fchmodat"
)
_LINE = re.compile(r"^(\d+) +(.*)$")
_CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+)")
_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"^<\.\.\. \w+ resumed>(.*)$")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_FD = re.compile(r"(AT_FDCWD|-?\d+)<((?:[^<>]|\\x[0-9a-f]{2})*)>(?:\(deleted\))?")


def watch(command: Sequence[str], log: Path) -> subprocess.CompletedProcess[str]:
    """Runs `command`, and writes to `log` what it does to files."""
    watching = ["strace", "-f", "-y", "-xx", "-s", str(1 << 24), "-e", f"trace={_CALLS}", "-o", str(log), *command]
    return subprocess.run(watching, capture_output=True, text=True)


@dataclass
class _File:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    mode: int = 0o600
    at: int = 0


@dataclass
class _Directory:
    names: dict[str, _File | _Directory] = field(default_factory=dict)
    synced: dict[str, _File | _Directory] = field(default_factory=dict)
    mode: int = 0o700


class Disk:
    """The directory `root`, which is empty when the watched program starts."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._tree = _Directory()

    def moments(self, log: Path) -> Iterator[str]:
        """Replays what was watched; stops before each call that makes something durable or changes names, and at the
        end. Yields what the program has written to its standard output until then."""
        said = b""
        for name, arguments, result in _calls(log):
            if result < 0:
                continue
            if name == "write" and arguments.startswith("1<"):
                said += _strings(arguments)[0]
                continue
            if name in _DOES:
                if name not in ("write", "pwrite64", "lseek", "open", "openat", "chmod", "fchmod", "fchmodat"):
                    yield said.decode()
                _DOES[name](self, arguments, result)
            elif self._root in arguments and name not in ("sync",):
                raise NotImplementedError(f"{name}({arguments[:300]})")
        yield said.decode()

    def write(self, place: Path, *, names: bool) -> None:
        """Makes `place` what is left; `names`: all names that were made are."""
        self._write(self._tree, place, names)

    def _write(self, directory: _Directory, place: Path, names: bool) -> None:
        place.mkdir()
        place.chmod(directory.mode)
        for name, found in (directory.names if names else directory.synced).items():
            if isinstance(found, _Directory):
                self._write(found, place / name, names)
            elif not name.endswith("-shm"):  # SQLite's shared memory, which is mapped, and made again
                (place / name).write_bytes(found.synced)
                (place / name).chmod(found.mode)

    def key(self, *, names: bool) -> object:
        """Equal for moments that leave the same."""

        def of(found: _File | _Directory) -> object:
            if isinstance(found, _File):
                return found.synced
            listed = found.names if names else found.synced
            return tuple((name, of(listed[name])) for name in sorted(listed))

        return of(self._tree)

    def _find(self, path: str) -> tuple[_Directory, str] | None:
        """The directory of `path` and the last name in it; None for what lies elsewhere, or is gone."""
        if not path.startswith(self._root + "/"):
            return None
        *above, name = path[len(self._root) + 1 :].rstrip("/").split("/")
        at: _File | _Directory | None = self._tree
        for part in above:
            at = at.names.get(part) if isinstance(at, _Directory) else None
        return (at, name) if isinstance(at, _Directory) else None

    def _get(self, path: str) -> _File | _Directory | None:
        if path == self._root:
            return self._tree
        found = self._find(path)
        return found[0].names.get(found[1]) if found else None

    def _open(self, arguments: str, _: int) -> None:
        path = _paths(arguments)[0]
        found = self._find(path)
        if found is None:
            return
        directory, name = found
        if "O_CREAT" in arguments and name not in directory.names:
            directory.names[name] = _File(mode=int(arguments.rpartition(",")[2], 8) & ~0o022)
        file = directory.names.get(name)
        if isinstance(file, _File):
            if "O_TRUNC" in arguments:
                file.data.clear()
            file.at = len(file.data) if "O_APPEND" in arguments else 0

    def _written(self, arguments: str, result: int) -> None:
        file = self._get(_fds(arguments)[0])
        if isinstance(file, _File):
            at = file.at
            if arguments.count(",") > 2:  # pwrite64's offset
                at = int(arguments.rpartition(",")[2])
            else:
                file.at += result
            file.data.extend(bytes(max(0, at - len(file.data))))
            file.data[at : at + result] = _strings(arguments)[0][:result]

    def _seek(self, arguments: str, result: int) -> None:
        file = self._get(_fds(arguments)[0])
        if isinstance(file, _File) and "SEEK_DATA" not in arguments and "SEEK_HOLE" not in arguments:
            file.at = result

    def _cut(self, arguments: str, _: int) -> None:
        file = self._get(_fds(arguments)[0])
        if isinstance(file, _File):
            size = int(arguments.rpartition(",")[2])
            del file.data[size:]
            file.data.extend(bytes(size - len(file.data)))

    def _sync(self, arguments: str, _: int) -> None:
        path = _fds(arguments)[0]
        if not path.startswith(self._root):
            return
        found = self._get(path)
        if isinstance(found, _File):
            found.synced = bytes(found.data)
        for directory in self._directories():
            directory.synced = dict(directory.names)

    def _sync_all(self, _: str, __: int) -> None:
        for directory in self._directories():
            directory.synced = dict(directory.names)
            for found in directory.names.values():
                if isinstance(found, _File):
                    found.synced = bytes(found.data)

    def _directories(self) -> Iterator[_Directory]:
        pending = [self._tree]
        while pending:
            directory = pending.pop()
            yield directory
            pending.extend(found for found in directory.names.values() if isinstance(found, _Directory))

    def _rename(self, arguments: str, _: int) -> None:
        old, new = _paths(arguments)
        source, target = self._find(old), self._find(new)
        if source and target:
            target[0].names[target[1]] = source[0].names.pop(source[1])

    def _link(self, arguments: str, _: int) -> None:
        old, new = _paths(arguments)
        found, target = self._get(old), self._find(new)
        if found and target:
            target[0].names[target[1]] = found

    def _unlink(self, arguments: str, _: int) -> None:
        if found := self._find(_paths(arguments)[0]):
            del found[0].names[found[1]]

    def _mkdir(self, arguments: str, _: int) -> None:
        if found := self._find(_paths(arguments)[0]):
            found[0].names[found[1]] = _Directory(mode=int(arguments.rpartition(",")[2], 8) & ~0o022)

    def _chmod(self, arguments: str, _: int) -> None:
        paths = _fds(arguments) if arguments[0].isdigit() and '"' not in arguments else _paths(arguments)
        if found := self._get(paths[0]):
            found.mode = int(re.findall(r", (0\d+)", arguments)[-1], 8)


_DOES: dict[str, Callable[[Disk, str, int], None]] = {
    "open": Disk._open,
    "openat": Disk._open,
    "write": Disk._written,
    "pwrite64": Disk._written,
    "lseek": Disk._seek,
    "ftruncate": Disk._cut,
    "fsync": Disk._sync,
    "fdatasync": Disk._sync,
    "syncfs": Disk._sync_all,
    "rename": Disk._rename,
    "renameat": Disk._rename,
    "renameat2": Disk._rename,
    "link": Disk._link,
    "linkat": Disk._link,
    "unlink": Disk._unlink,
    "unlinkat": Disk._unlink,
    "rmdir": Disk._unlink,
    "mkdir": Disk._mkdir,
    "mkdirat": Disk._mkdir,
    "chmod": Disk._chmod,
    "fchmod": Disk._chmod,
    "fchmodat": Disk._chmod,
}


def _calls(log: Path) -> Iterator[tuple[str, str, int]]:
    """(name, arguments, result) of each call, when it was done."""
    begun: dict[str, str] = {}
    for line in log.read_text().splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        thread, text = found.groups()
        if text.endswith(_UNFINISHED):
            begun[thread] = text.removesuffix(_UNFINISHED)
            continue
        if resumed := _RESUMED.match(text):
            text = begun.pop(thread) + resumed[1]
        if call := _CALL.match(text):
            yield call[1], call[2], int(call[3])


def _plain(text: str) -> str:
    return re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), text)


def _strings(arguments: str) -> list[bytes]:
    found = _STRING.findall(arguments)
    assert not any(cut for _, cut in found), "strace has cut a string short"
    return [bytes.fromhex(text.replace("\\x", "")) for text, _ in found]


def _fds(arguments: str) -> list[str]:
    return [_plain(path) for _, path in _FD.findall(arguments)]


def _paths(arguments: str) -> list[str]:
    """The paths that a call names, each with the directory that it begins at."""
    paths = []
    for text in re.findall(r'(?:(?:AT_FDCWD|\d+)<(?:[^<>])*>, )?"(?:\\x[0-9a-f]{2})*"', arguments):
        name = _strings(text)[0].decode()
        base = next(iter(_fds(text)), "")
        paths.append(name if name.startswith("/") else f"{base}/{name}" if name else base)
    return paths
