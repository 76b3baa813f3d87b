"""The filter language of lists and subscriptions.

    filters   = any of the list may match; an empty list, or an empty filter, matches everything
    filter    = selector *("," selector)            all must match
    selector  = fieldpath [("==" | "!=" | "~=") value]
    fieldpath = field *("." field)
    field     = 1*(letter / digit / "_") / quoted
    value     = quoted / a run of visible characters without space and ","

Without an operator a selector asks whether the field is present. An absent field has the empty value, so `!=` matches
it. `~=` searches with RE2's expressions, in time linear in the value; one that does not compile matches nothing.
Quotes are `"`, with Go's escapes; behind `~=` also `/` and `|`.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orlop.errors import InvalidArgument

_log = logging.getLogger(__name__)

Adaptor = Callable[[Sequence[str]], tuple[str, bool]]
"""How an object answers: a field path to its value and whether it is present."""

Filter = Callable[[Adaptor], bool]

MAX_LENGTH = 65536
"""Characters of all filters of a list together. Ours, not containerd's: parsing runs on the event loop."""


def parse(filters: Sequence[str]) -> Filter:
    """The filter that matches where one of `filters` does.

    Raises InvalidArgument whose text starts `filters: parse error: `, as containerd words it.
    """
    if sum(map(len, filters)) > MAX_LENGTH:
        raise InvalidArgument(f"filters: parse error: [{filters[0][:64]}...]: longer than {MAX_LENGTH} characters")
    alternatives = [_Parser(text).selectors() for text in filters]
    if not alternatives or [] in alternatives:
        return _always

    def matches(adaptor: Adaptor) -> bool:
        return any(all(selector(adaptor) for selector in selectors) for selectors in alternatives)

    return matches


def labels_field(path: Sequence[str], labels: Mapping[str, str]) -> tuple[str, bool]:
    """The value of `labels.<path>`: the parts behind `labels`, joined by dots, are the key. None of them: absent."""
    key = ".".join(path)
    return labels.get(key, ""), bool(path) and key in labels


def _always(_adaptor: Adaptor) -> bool:
    return True


def _compile(expression: str) -> Any:
    """The compiled `expression`, or None where RE2 refuses it."""
    import re2  # 2 MB with the library of C++, which a daemon that nobody asks for `~=` is spared

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(expression, options)
    except (re2.error, UnicodeEncodeError) as error:
        _log.error("filters: cannot compile regular expression %r: %s", expression, error)
        return None


@dataclass(frozen=True, slots=True)
class _Selector:
    path: tuple[str, ...]
    operator: str
    value: str
    expression: Any

    def __call__(self, adaptor: Adaptor) -> bool:
        found, present = adaptor(self.path)
        match self.operator:
            case "==":
                return present and found == self.value
            case "!=":
                return found != self.value
            case "~=":
                return self.expression is not None and self.expression.search(found) is not None
        return present


@dataclass(frozen=True, slots=True)
class _Token:
    """`kind` is one of field, value, quoted, operator, separator, illegal, end, other; `position` is its start."""

    kind: str
    position: int
    text: str = ""


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._scanner = _Scanner(text)

    def selectors(self) -> list[_Selector]:
        if not self._text:
            return []
        selectors = [self._selector()]
        while (character := self._scanner.peek()) != "":
            if character != ",":
                shown = "\ufffd" if character in _ILLEGAL else character
                raise self._refusal(self._scanner.ahead, f"unexpected input: {shown}")
            self._scanner.scan()
            selectors.append(self._selector())
        return selectors

    def _selector(self) -> _Selector:
        path = self._fieldpath()
        if self._scanner.peek() in {",", ""}:
            return _Selector(path, "", "", None)
        operator = self._operator()
        value = self._value(every_quote=operator == "~=")
        return _Selector(path, operator, value, _compile(value) if operator == "~=" else None)

    def _fieldpath(self) -> tuple[str, ...]:
        fields = [self._field()]
        while self._scanner.peek() == ".":
            self._scanner.scan()
            fields.append(self._field())
        return tuple(fields)

    def _field(self) -> str:
        token = self._scanner.scan()
        if token.kind == "field":
            return token.text
        if token.kind == "quoted":
            return self._unquote(token, every_quote=False)
        raise self._unexpected(token, "expected field or quoted")

    def _operator(self) -> str:
        token = self._scanner.scan()
        if token.kind != "operator":
            raise self._unexpected(token, 'expected an operator ("=="|"!="|"~=")')
        if token.text not in {"==", "!=", "~="}:
            raise self._refusal(token.position, f'unsupported operator "{token.text}"')
        return token.text

    def _value(self, *, every_quote: bool) -> str:
        token = self._scanner.scan()
        if token.kind in {"value", "field"}:
            return token.text
        if token.kind == "quoted":
            return self._unquote(token, every_quote=every_quote)
        raise self._unexpected(token, "expected value or quoted")

    def _unquote(self, token: _Token, *, every_quote: bool) -> str:
        if not every_quote and token.text[0] != '"':
            raise self._refusal(token.position, "invalid quote encountered")
        try:
            return _unescape(token.text[1:-1])
        except ValueError as error:
            raise self._refusal(token.position, "unquoting failed: quote syntax error") from error

    def _unexpected(self, token: _Token, why: str) -> InvalidArgument:
        return self._refusal(token.position, self._scanner.error if token.kind == "illegal" else why)

    def _refusal(self, position: int, why: str) -> InvalidArgument:
        text = self._text
        if position < len(text):
            text = f"{text[:position]} >|{text[position]}|< {text[position + 1 :]}"
        return InvalidArgument(f"filters: parse error: [{text}]: {why}")


_ILLEGAL = {"\0", "\ufffd"}
_FIELD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_OPERATOR = frozenset("=!~")


def _is_space(character: str) -> bool:
    """White space as Unicode has it; Python counts four separators of ASCII along."""
    return character.isspace() and not "\x1c" <= character <= "\x1f"


def _is_value(character: str) -> bool:
    return character not in {",", ""} and unicodedata.category(character)[0] in "LMNPS" and character not in _ILLEGAL


class _Scanner:
    """Tokens of a filter. A character of "" is the end; `error` is what was first wrong."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self.ahead = 0
        self._want_value = False
        self.error = ""

    def peek(self) -> str:
        """The next character, spaces included."""
        return self._text[self.ahead : self.ahead + 1]

    def scan(self) -> _Token:
        character = self._next()
        while character and _is_space(character):
            character = self._next()
        start = self._position
        if not character:
            return _Token("end", start)
        if character in _ILLEGAL:
            return _Token("illegal", start)
        if character in {'"', "/", "|"}:
            terminated = self._pass_quoted(character)
            return _Token("quoted" if terminated else "illegal", start, self._text[start : self.ahead])
        if character in {",", "."}:
            self._want_value = False
            return _Token("separator", start, character)
        if character in _OPERATOR:
            self._want_value = True
            return self._run("operator", start, _OPERATOR.__contains__)
        if self._want_value:
            self._want_value = False
            return self._run("value", start, _is_value)
        if character in _FIELD:
            return self._run("field", start, _FIELD.__contains__)
        return _Token("other", start)

    def _run(self, kind: str, start: int, belongs: Callable[[str], bool]) -> _Token:
        """The token from `start` on, its first character passed, as long as characters belong to it."""
        end = self.ahead
        while end < len(self._text) and belongs(self._text[end]):
            end += 1
        self._position, self.ahead = end - 1, end
        return _Token(kind, start, self._text[start:end])

    def _next(self) -> str:
        self._position = self.ahead
        character = self._text[self.ahead : self.ahead + 1]
        self.ahead += len(character)
        if character in _ILLEGAL:
            self._fail("unexpected null" if character == "\0" else "rune error")
        return character

    def _fail(self, why: str) -> None:
        self.error = self.error or why

    def _pass_quoted(self, quote: str) -> bool:
        legal = True
        character = self._next()
        while character != quote:
            if character in {"\n", ""} or character in _ILLEGAL:
                self._fail("quoted literal not terminated")
                return False
            if character == "\\":
                character, known = self._pass_escape(quote)
                legal = legal and known
            else:
                character = self._next()
        return legal

    def _pass_escape(self, quote: str) -> tuple[str, bool]:
        """The character behind the escape, and whether the escape is one."""
        character = self._next()
        if character and character in "abfnrtv\\" + quote:
            return self._next(), True
        if character and character in "01234567":
            return self._pass_digits(character, "01234567", 3)
        count = {"x": 2, "u": 4, "U": 8}.get(character)
        if count is not None:
            return self._pass_digits(self._next(), "0123456789abcdefABCDEF", count)
        self._fail("illegal escape sequence")
        return character, False

    def _pass_digits(self, character: str, digits: str, count: int) -> tuple[str, bool]:
        while count and character and character in digits:
            character = self._next()
            count -= 1
        if count:
            self._fail("illegal numeric escape sequence")
        return character, not count


_LETTERS = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}


def _unescape(text: str) -> str:
    r"""`text` with its escapes resolved; `\x` and octal escapes are bytes. Raises ValueError for a number too large."""
    if "\\" not in text:
        return text
    out = bytearray()
    at = 0
    while at < len(text):
        start = text.find("\\", at)
        if start < 0:
            start = len(text)
        out += text[at:start].encode("utf-8", "surrogatepass")
        if start == len(text):
            break
        letter = text[start + 1]
        at = start + 2
        if letter in _LETTERS:
            out.append(_LETTERS[letter])
        elif letter in "01234567":
            out.append(int(text[start + 1 : start + 4], 8))
            at = start + 4
        elif letter == "x":
            out.append(int(text[at : at + 2], 16))
            at += 2
        elif letter in "uU":
            length = 4 if letter == "u" else 8
            number = int(text[at : at + length], 16)
            at += length
            out += ("\ufffd" if 0xD800 <= number <= 0xDFFF else chr(number)).encode()
        else:
            out += letter.encode()
    return out.decode("utf-8", "surrogateescape")
