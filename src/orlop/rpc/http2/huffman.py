"""The Huffman code of header strings (RFC 7541, section 5.2 and appendix B), which we only read.

The code is canonical: within a length, codes go up with their symbols, so lengths say everything. No symbol has 9 bits.
"""

from __future__ import annotations

from functools import lru_cache

_SYMBOLS = {
    5: "303132616365696f7374",
    6: "20252d2e2f333435363738393d415f62646667686c6d6e707275",
    7: "3a42434445464748494a4b4c4d4e4f5051525354555657596a6b71767778797a",
    8: "262a2c3b585a",
    10: "212228293f",
    11: "272b7c",
    12: "233e",
    13: "0024405b5d7e",
    14: "5e7d",
    15: "3c607b",
    19: "5cc3d0",
    20: "808283a2b8c2e0e2",
    21: "99a1a7acb0b1b3d1d8d9e3e5e6",
    22: "8184858688929a9ca0a3a4a9aaadb2b5b9babbbdbec4c6e4e8e9",
    23: "0187898a8b8c8d8f93959697989b9d9ea5a6a8aeafb4b6b7bcbfc5e7ef",
    24: "098e9091949fabced7e1eced",
    25: "c7cfeaeb",
    26: "c0c1c8c9cacdd2d5dadbeef0f2f3ff",
    27: "cbccd3d4d6dddedff1f4f5f6f7f8fafbfcfdfe",
    28: "020304050607080b0c0e0f1011121314151718191a1b1c1d1e1f7fdcf9",
    30: "0a0d16",
}
"""The symbols of each length of code, in hexadecimal."""
_SHORT = 8
_LONG_LENGTHS = tuple(length for length in _SYMBOLS if length > _SHORT)


def _tables() -> tuple[list[tuple[int, int]], dict[tuple[int, int], int]]:
    """Length and symbol by the first eight bits, (0, 0) where eight are too few; the longer codes' symbols."""
    short, long = [(0, 0)] * (1 << _SHORT), {}
    code = previous = 0
    for length, symbols in _SYMBOLS.items():
        code <<= length - previous
        previous = length
        for symbol in bytes.fromhex(symbols):
            if length <= _SHORT:
                first = code << (_SHORT - length)
                for index in range(first, first + (1 << (_SHORT - length))):
                    short[index] = (length, symbol)
            else:
                long[length, code] = symbol
            code += 1
    return short, long


_SHORT_CODES, _LONG_CODES = _tables()


@lru_cache(256)
def decode(data: bytes) -> bytes:
    """What `data` stands for. Raises ValueError if it is no string of this code."""
    decoded = bytearray()
    bits = held = 0
    for byte in data:
        held = held << 8 | byte
        bits += 8
        while bits >= _SHORT:
            length, symbol = _SHORT_CODES[held >> (bits - _SHORT)]
            if not length:
                length, symbol = _long(held, bits)
                if not length:
                    break
            decoded.append(symbol)
            bits -= length
            held &= (1 << bits) - 1
    while bits:
        padding = (1 << bits) - 1
        if held == padding and bits < _SHORT:
            break
        length, symbol = _SHORT_CODES[held << (_SHORT - bits) | 0xFF >> bits] if bits < _SHORT else (0, 0)
        if not 0 < length <= bits:
            raise ValueError("a header string ends in the middle of a symbol")
        decoded.append(symbol)
        bits -= length
        held &= (1 << bits) - 1
    return bytes(decoded)


def _long(held: int, bits: int) -> tuple[int, int]:
    """Length and symbol of the code that `held`, of `bits` bits, begins with; (0, 0) if more bits are needed."""
    for length in _LONG_LENGTHS:
        if length > bits:
            return 0, 0
        symbol = _LONG_CODES.get((length, held >> (bits - length)))
        if symbol is not None:
            return length, symbol
    raise ValueError("a header string has the code of no symbol")
