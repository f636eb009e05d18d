"""QMP's parser: values in any pieces, and what a hostile client sends instead."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmesh_services.monitor.qmp.errors import QmpError
from vmesh_services.monitor.qmp.parser import MAX_BYTES, MAX_NESTING, Parser

_SCALARS = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text()
_JSON = st.recursive(
    _SCALARS | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


def push(parser: Parser, piece: bytes) -> Iterator[object]:
    parser.push(piece)
    while (found := parser.take()) is not None:
        yield str(found[0]) if isinstance(found[0], QmpError) else found[0]


def feed(*pieces: bytes) -> list[object]:
    parser = Parser()
    return [found for piece in pieces for found in push(parser, piece)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.dictionaries(st.text(), _JSON), max_size=3), st.integers(1, 7), st.booleans())
def test_parser_values_in_pieces(values: list[object], size: int, escaped: bool) -> None:
    text = b"".join(json.dumps(value, ensure_ascii=escaped).encode() for value in values)
    assert feed(*(text[place : place + size] for place in range(0, len(text), size))) == values


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_parser_recovers_from_anything(pieces: list[bytes]) -> None:
    parser = Parser()
    for piece in pieces:
        list(push(parser, piece))
    assert list(push(parser, b'\xff{"a": 1}'))[-1] == {"a": 1}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"hello\n", "invalid keyword 'hello'"),
        (b"}\n", "stray '}'"),
        (b'{"a": 1, "a": 2}', "duplicate key"),
        (b'{"a" 1}', "expecting ':'"),
        (b'{"a": NaN}', "invalid keyword 'NaN'"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": "\xc3"}', "UTF-8"),
        (b'{"a\x01": 1}\n', "not closed"),
        (b'{"a": ["\\ud800"]}', r"\ud800 is not a valid Unicode character"),
        (b'{"\\udfff": 1}', r"\udfff is not a valid Unicode character"),
    ],
)
def test_parser_error_costs_one_message(text: bytes, error: str) -> None:
    first, second = feed(text + b'{"b": 1}')
    assert error in str(first)
    assert second == {"b": 1}


def test_parser_one_error_a_line() -> None:
    assert len(feed(b"a b c d\n", b"e f g\n", b"{}")) == 3


def test_parser_nesting() -> None:
    first, second = feed(b"[" * (MAX_NESTING + 1) + b"]" * 4000 + b"\n[[1]]")
    assert first == "JSON nesting depth limit exceeded"
    assert second == [[1]]
    (deep,) = feed(b"[" * MAX_NESTING + b"]" * MAX_NESTING)
    for indent in (None, 4):  # what was read can be written back: it may be an id
        assert json.loads(json.dumps(deep, indent=indent)) == deep


def test_parser_size_is_bounded() -> None:
    parser = Parser()
    errors = [found for _ in range(3 * MAX_BYTES >> 16) for found in push(parser, b'{"a": "' + b"x" * 65529)]
    assert any("size limit" in str(error) for error in errors)
    assert parser.pending <= MAX_BYTES + 65536
    assert list(push(parser, b'\n\xff{"a": 1}'))[-1] == {"a": 1}


def test_parser_numbers_beyond_64_bits_are_floats() -> None:
    assert feed(b"[18446744073709551615, 18446744073709551617000]") == [[18446744073709551615, 1.8446744073709552e22]]
    (huge,) = feed(b'{"a": ' + b"9" * 5000 + b"}")
    assert "too large" in str(huge)
