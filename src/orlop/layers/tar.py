"""A bounded reader of tar archives: v7, ustar, pax, star and GNU, with long names, base-256 numbers and sparse files.

It takes nothing on trust: every length is bounded before it is read, positions only go forward, and names stay bytes.
It knows nothing of file systems; each entry tells where in the stream its data lies, so that a layer can be indexed
without being unpacked. Texts of errors are those of Go's archive/tar, which clients match on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from orlop.errors import ResourceExhausted
from orlop.layers import header, pax, sparse
from orlop.layers.header import BLOCK, ZEROS, Dialect, FieldTooLong, Header, InvalidHeader
from orlop.layers.stream import ByteStream, Chunk, unexpected_end

REGULAR = b"0"
LINK = b"1"
SYMLINK = b"2"
CHARACTER = b"3"
BLOCK_DEVICE = b"4"
DIRECTORY = b"5"
FIFO = b"6"
GLOBAL = b"g"

_OLD_REGULAR = b"\0"
_EXTENDED = b"x"
_LONG_NAME = b"L"
_LONG_LINK = b"K"
_OLD_SPARSE = b"S"
_WITHOUT_DATA = frozenset((LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO))
_ENTRIES = _WITHOUT_DATA | {REGULAR, _OLD_REGULAR}

EXTENSION_LIMIT = 1 << 20
NAME_LIMIT = 4096


@dataclass(slots=True)
class Entry:
    """One member, not to be changed (a frozen class takes three times as long to make, and there are many).

    Times are nanoseconds since 1970; `size` is that of the file, holes included. `stored` bytes of data lie at
    `data_offset` of the stream; `parts` says which of the file's they are (None: all).
    """

    name: bytes
    type: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    data_offset: int
    stored: int
    link: bytes = b""
    atime: int | None = None
    major: int = 0
    minor: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    parts: sparse.Parts | None = None


@dataclass(slots=True)
class _Extensions:
    """What precedes a header and changes its meaning."""

    name: bytes = b""
    link: bytes = b""
    records: dict[bytes, bytes] = field(default_factory=dict)
    sparse_numbers: list[bytes] = field(default_factory=list)


class TarReader:
    """Iterates over the entries of `stream`. Data of an entry is read, with `data`, before the next is asked for."""

    def __init__(self, stream: ByteStream, *, entries_limit: int = 10_000_000) -> None:
        self.stream = stream
        self._entries_limit = entries_limit
        self._end_of_entry = 0

    def __iter__(self) -> Iterator[Entry]:
        """Raises Unknown with archive/tar's words for what is no tar, ResourceExhausted for too many entries."""
        count = 0
        while (entry := self._next()) is not None:
            count += 1
            if count > self._entries_limit:
                raise ResourceExhausted(f"archive of more than {self._entries_limit} entries")
            yield entry

    def data(self, entry: Entry) -> Iterator[tuple[int, Chunk]]:
        """The data of the entry just read: (offset in the file, bytes), ascending, holes left out."""
        for offset, length in entry.parts if entry.parts is not None else ((0, entry.stored),):
            for piece in self.stream.pieces(length):
                yield offset, piece
                offset += len(piece)  # noqa: PLW2901

    def _next(self) -> Entry | None:
        self.stream.skip(self._end_of_entry - self.stream.offset)
        extensions: _Extensions | None = None
        while True:
            block = self.stream.take_up_to(BLOCK)
            if not block and (extensions is None or extensions == _Extensions()):
                return None
            if len(block) < BLOCK:
                raise unexpected_end()
            if block == ZEROS:
                self._end_of_archive()
                return None
            head = header.parse(block)
            if head.type in _ENTRIES:
                return self._plain(head) if extensions is None else self._entry(head, extensions)
            if extensions is None:
                extensions = _Extensions()
            if head.type == _EXTENDED:
                self._read_records(head, extensions)
            elif head.type == _LONG_NAME:
                extensions.name = header.text(self._extension(head))
            elif head.type == _LONG_LINK:
                extensions.link = header.text(self._extension(head))
            elif head.type == GLOBAL:
                # Defaults for all that follows; image layers have none that mean anything, so they are passed over.
                self._extension(head)
            else:
                return self._entry(head, extensions)

    def _plain(self, head: Header) -> Entry:
        """The entry of a header that nothing precedes: most are."""
        type = head.type
        if type == _OLD_REGULAR:
            type = DIRECTORY if head.name.endswith(b"/") else REGULAR
        stored = head.size if type == REGULAR else 0
        offset = self.stream.offset
        self._end_of_entry = offset + stored + -stored % BLOCK
        return Entry(
            head.name,
            type,
            head.mode,
            head.uid,
            head.gid,
            stored,
            head.mtime * 1_000_000_000,
            offset,
            stored,
            head.link,
            None,
            head.major,
            head.minor,
            _NO_XATTRS,
        )

    def _end_of_archive(self) -> None:
        second = self.stream.take_up_to(BLOCK)
        if second and second != ZEROS:
            raise InvalidHeader()
        self._end_of_entry = self.stream.offset

    def _extension(self, head: Header) -> bytes:
        if head.size > EXTENSION_LIMIT:
            raise FieldTooLong(f"{head.size} bytes of extended header, at most {EXTENSION_LIMIT} are read")
        data = self.stream.take(head.size)
        self.stream.skip(-head.size % BLOCK)
        return data

    def _read_records(self, head: Header, extensions: _Extensions) -> None:
        extensions.records = {}
        extensions.sparse_numbers = []
        for key, value in pax.records(self._extension(head)):
            if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                wanted = b"GNU.sparse.numbytes" if len(extensions.sparse_numbers) % 2 else b"GNU.sparse.offset"
                if key != wanted:
                    raise InvalidHeader("sparse map out of order")
                extensions.sparse_numbers.append(value)
            else:
                extensions.records[key] = value

    def _entry(self, head: Header, extensions: _Extensions) -> Entry:
        records = extensions.records
        name = records.get(b"path") or extensions.name or head.name
        link = records.get(b"linkpath") or extensions.link or head.link
        type = head.type
        if type == _OLD_REGULAR:
            type = DIRECTORY if name.endswith(b"/") else REGULAR
        stored = pax.unsigned(size, "size") if (size := records.get(b"size")) else head.size
        atime = pax.time(accessed, "atime") if (accessed := records.get(b"atime")) else None
        if type in _WITHOUT_DATA:
            stored = 0
        whole, taken, start = self._sparse_map(head, extensions, stored)
        if whole is not None:
            type = REGULAR
            name = records.get(b"GNU.sparse.name") or name
        for what in (name, link):
            if len(what) > NAME_LIMIT:
                raise FieldTooLong(f"name of {len(what)} bytes, at most {NAME_LIMIT} are read")
        if b"\0" in name or b"\0" in link:
            raise InvalidHeader("name with a NUL")
        entry = Entry(
            name=name,
            type=type,
            mode=head.mode,
            uid=pax.unsigned(uid, "uid") if (uid := records.get(b"uid")) else head.uid,
            gid=pax.unsigned(gid, "gid") if (gid := records.get(b"gid")) else head.gid,
            size=whole.size if whole is not None else stored,
            mtime=pax.time(mtime, "mtime") if (mtime := records.get(b"mtime")) else head.mtime * 1_000_000_000,
            data_offset=self.stream.offset,
            stored=stored - taken,
            link=link,
            atime=atime,
            major=head.major,
            minor=head.minor,
            xattrs=_xattrs(records),
            parts=whole.parts if whole is not None else None,
        )
        end = start + stored
        self._end_of_entry = end + -stored % BLOCK
        return entry

    def _sparse_map(
        self, head: Header, extensions: _Extensions, stored: int
    ) -> tuple[sparse.SparseMap | None, int, int]:
        """The map, how much of the data it took, and where the data starts, the map included."""
        records = extensions.records
        if head.type == _OLD_SPARSE and head.dialect is Dialect.GNU:
            found = sparse.old_gnu(head.block, stored, self.stream)
            return found, 0, self.stream.offset
        start = self.stream.offset
        if head.type not in (REGULAR, _OLD_REGULAR):
            return None, 0, start
        version = (records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor"))
        if version == (b"1", b"0"):
            size = pax.unsigned(records.get(b"GNU.sparse.realsize", b""), "sparse size")
            found, taken = sparse.pax_1(size, stored, self.stream)
            return found, taken, start
        size_0 = records.get(b"GNU.sparse.size")
        if size_0 is None:
            return None, 0, start
        numbers = extensions.sparse_numbers
        if given := records.get(b"GNU.sparse.map"):
            numbers = given.split(b",")
        return sparse.pax_0(pax.unsigned(size_0, "sparse size"), numbers, stored), 0, start


def _xattrs(records: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    if not records:
        return _NO_XATTRS
    prefix = pax.XATTR_PREFIX
    return {key[len(prefix) :]: value for key, value in records.items() if key.startswith(prefix)}


_NO_XATTRS: Mapping[bytes, bytes] = {}
