"""The tar reader: bounds, numbers, and errors in the words clients know."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import OrlopError, ResourceExhausted, Unknown
from orlop.layers import header, pax, tar, write
from orlop.layers.stream import ByteStream
from orlop.layers.tar import Entry, TarReader


def read(data: bytes, **limits: int) -> list[Entry]:
    return list(TarReader(ByteStream([data]), **limits))


def member(name: bytes = b"f", data: bytes = b"data") -> bytes:
    made = Entry(name, tar.REGULAR, 0o644, 0, 0, len(data), 0, 0, len(data))
    return write.head(made) + data + write.padding(len(data))


def extended(records: bytes) -> bytes:
    made = Entry(b"x", b"x", 0o644, 0, 0, len(records), 0, 0, len(records))
    return write.head(made) + records + write.padding(len(records))


@pytest.mark.parametrize("field", [b"0o17", b"+17", b"-1", b"1_7", b"8", "١".encode(), b"1 7", b"\xff" * 8])
def test_a_number_is_octal_digits_or_base_256_and_nothing_else(field: bytes) -> None:
    with pytest.raises(Unknown, match="archive/tar: invalid tar header"):
        header.number(field.ljust(8, b"\0"), "uid")


def test_numbers_have_blanks_around_and_may_be_large() -> None:
    assert header.number(b" 17 \0\0\0\0", "uid") == 0o17
    assert header.number(bytes(8), "uid") == 0
    assert header.number(b"\x80" + (1 << 40).to_bytes(11, "big"), "size") == 1 << 40
    assert header.number(b"\xff" * 11 + b"\xfe", "mtime", signed=True) == -2
    with pytest.raises(Unknown):
        header.number(b"\x80" + (1 << 63).to_bytes(11, "big"), "size")


@pytest.mark.parametrize("end", [1, 100, 511, 513, 600])
def test_an_archive_cut_short_is_told(end: int) -> None:
    whole = member(data=b"d" * 700)
    with pytest.raises(Unknown, match=r"^unexpected EOF$"):
        read(whole[:end])


def test_an_archive_ends_with_two_blocks_one_block_or_none() -> None:
    for end in (bytes(1024), bytes(512), b"", bytes(10_240)):
        assert [entry.name for entry in read(member() + end)] == [b"f"]
    with pytest.raises(Unknown, match="invalid tar header"):
        read(member() + bytes(512) + member())
    assert read(b"") == []


def test_what_is_no_tar_is_told() -> None:
    with pytest.raises(Unknown) as refusal:
        read(b"not a tar" * 100)
    assert refusal.value.message == "archive/tar: invalid tar header"


def test_an_entry_tells_where_its_data_lies() -> None:
    archive = member(b"one", b"1" * 600) + member(b"n" * 200, b"22")
    for entry in read(archive):
        at = entry.data_offset
        assert archive[at : at + entry.stored] == {b"one": b"1" * 600}.get(entry.name, b"22")


def test_extended_headers_have_bounds() -> None:
    with pytest.raises(Unknown, match="header field too long"):
        read(write.head(Entry(b"x", b"x", 0, 0, 0, 1 << 30, 0, 0, 1 << 30)) + bytes(1024))
    with pytest.raises(Unknown, match="header field too long: name of 5000 bytes"):
        read(member(b"n" * 5000))
    with pytest.raises(ResourceExhausted, match="more than 3 entries"):
        read(member() * 4, entries_limit=3)


@pytest.mark.parametrize(
    "records",
    [b"8 path=a\n", b"x path=a\n", b"100 path=a\n", b"+9 path=a\n", b"10 path=a\0\n", b"5 a=\0", b"6 =ab\n", b"4 a\n"],
)
def test_a_malformed_record_is_refused(records: bytes) -> None:
    with pytest.raises(Unknown, match="invalid tar header"):
        read(extended(records) + member())


@pytest.mark.parametrize("record", [b"12 size=-10\n", b"11 uid=1_0\n", b"14 mtime=1e5x\n", b"11 size= 1\n"])
def test_a_malformed_number_in_a_record_is_refused(record: bytes) -> None:
    sized = record.split(b" ", 1)[1]
    length = len(sized) + 3 if len(sized) + 2 > 9 else len(sized) + 2
    with pytest.raises(Unknown, match="invalid tar header"):
        read(extended(b"%d %s" % (length, sized)) + member())


def test_records_give_times_in_nanoseconds() -> None:
    assert pax.time(b"1.5", "mtime") == 1_500_000_000
    assert pax.time(b"-1.5", "mtime") == -1_500_000_000
    assert pax.time(b"0.1234567899", "mtime") == 123_456_789
    assert pax.time(b"7.", "mtime") == 7_000_000_000


@pytest.mark.parametrize(
    "map",
    [b"5,10,0,5", b"0,5,3,5", b"0,100", b"0", b"0,5,", b"-1,5", b"0,99999999999999999999"],
)
def test_a_sparse_map_that_makes_no_sense_is_refused(map: bytes) -> None:
    fields = [b"GNU.sparse.size=50\n", b"GNU.sparse.map=" + map + b"\n"]
    records = b"".join(b"%d %s" % (len(f) + 3, f) for f in fields)
    with pytest.raises(Unknown, match="invalid tar header"):
        read(extended(records) + member(data=b"d" * 10))


@given(st.binary(max_size=300).filter(lambda b: b"\0" not in b and b), st.integers(0, 2**40), st.integers(-9, 2**40))
def test_what_is_written_reads_back(name: bytes, owner: int, seconds: int) -> None:
    made = Entry(name, tar.SYMLINK, 0o777, owner, owner, 0, seconds * 10**9, 0, 0, link=name[::-1])
    (found,) = read(write.head(made) + write.END)
    assert (found.name, found.link, found.uid, found.gid, found.mtime) == (name, name[::-1], owner, owner, made.mtime)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=300), st.integers(0, 2**40))
def test_python_reads_what_is_written(name: str, owner: int) -> None:
    made = Entry(name.encode(), tar.REGULAR, 0o644, owner, owner, 3, 0, 0, 3)
    data = write.head(made) + b"abc" + write.padding(3) + write.END
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (found,) = archive.getmembers()
    assert (found.name, found.uid, found.size) == (name, owner, 3)


@given(st.binary(max_size=4096))
def test_any_bytes_are_an_archive_or_our_error(data: bytes) -> None:
    try:
        read(data)
    except OrlopError:
        pass
