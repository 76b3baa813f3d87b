"""Header compression against the examples of RFC 7541, and against what nobody should send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.rpc.http2 import huffman
from orlop.rpc.http2.hpack import Decoder, literal

_BITS = {
    **{
        symbol: format(index >> (8 - length), f"0{length}b")
        for index, (length, symbol) in enumerate(huffman._SHORT_CODES)
        if length
    },
    **{symbol: format(code, f"0{length}b") for (length, code), symbol in huffman._LONG_CODES.items()},
}


def coded(data: bytes) -> bytes:
    bits = "".join(_BITS[byte] for byte in data)
    bits += "1" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def test_each_byte_has_a_code() -> None:
    assert sorted(_BITS) == list(range(256))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("f1e3c2e5f23a6ba0ab90f4ff", b"www.example.com"),
        ("a8eb10649cbf", b"no-cache"),
        ("d07abe941054d444a8200595040b8166e082a62d1bff", b"Mon, 21 Oct 2013 20:13:21 GMT"),
        ("9d29ad171863c78f0b97c8e9ae82ae43d3", b"https://www.example.com"),
        ("", b""),
    ],
)
def test_strings_of_the_specification(data: str, text: bytes) -> None:
    assert huffman.decode(bytes.fromhex(data)) == text
    assert coded(text) == bytes.fromhex(data)


@given(st.binary(max_size=300))
def test_every_string_survives_its_code(data: bytes) -> None:
    assert huffman.decode(coded(data)) == data


@given(st.binary(max_size=64))
def test_bytes_are_a_string_or_refused(data: bytes) -> None:
    try:
        text = huffman.decode(data)
    except ValueError:
        return
    assert coded(text) == data


@pytest.mark.parametrize("data", ["ff", "ffff", "ffffffff", "1fff", "00", "fffffffc"])
def test_padding_is_short_and_all_ones(data: str) -> None:
    with pytest.raises(ValueError, match="header string"):
        huffman.decode(bytes.fromhex(data))


def test_requests_of_the_specification_share_a_table() -> None:
    """Appendix C.4: three requests on one connection."""
    decoder = Decoder(1 << 16)
    common = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")]
    assert decoder.decode(bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff")) == (common, True)
    assert decoder.decode(bytes.fromhex("828684be5886a8eb10649cbf")) == ([*common, ("cache-control", "no-cache")], True)
    fields, _ = decoder.decode(bytes.fromhex("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"))
    assert fields[1:3] == [(":scheme", "https"), (":path", "/index.html")]
    assert fields[4] == ("custom-key", "custom-value")


def test_the_table_forgets_its_oldest() -> None:
    decoder = Decoder(1 << 20)
    for number in range(3):
        decoder.decode(b"\x40" + literal(f"name{number}", "x" * 2000)[1:])
    assert decoder.decode(b"\xbe")[0] == [("name2", "x" * 2000)]
    with pytest.raises(ValueError, match="in no table"):
        decoder.decode(b"\xc0")
    version = decoder.version
    assert decoder.decode(b"\x20\x82") == ([(":method", "GET")], True)
    assert decoder.version != version
    with pytest.raises(ValueError, match="in no table"):
        decoder.decode(b"\xbe")


@pytest.mark.parametrize(
    "block",
    [
        "80",  # index 0
        "ff80808080808001",  # an index without measure
        "7f",  # an index that is cut off
        "00",
        "0005616263",
        "000161",
        "3fe2ff03",  # a table larger than ours
        "8220",  # its size changed behind a field
        "0081ff00",
    ],
)
def test_broken_blocks_are_refused(block: str) -> None:
    with pytest.raises(ValueError, match="header"):
        Decoder(1 << 16).decode(bytes.fromhex(block))


def test_a_bomb_of_references_is_cut() -> None:
    decoder = Decoder(1 << 16)
    decoder.decode(b"\x40" + literal("name", "x" * 4000)[1:])
    fields, whole = decoder.decode(b"\xbe" * 60_000)
    assert not whole
    assert len(fields) == (1 << 16) // 4036


@given(st.binary(max_size=200))
def test_any_block_is_decoded_or_refused(block: bytes) -> None:
    try:
        Decoder(1 << 16).decode(block)
    except (ValueError, IndexError):
        return


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20_000))
def test_literals_stand_for_themselves(value: str) -> None:
    assert Decoder(1 << 20).decode(literal("a-name", value)) == ([("a-name", value)], True)
