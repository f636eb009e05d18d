"""The Ctrl-A multiplexer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmesh.cli.keys import Action, KeyMux, key_help


def test_plain_bytes_pass() -> None:
    assert KeyMux().feed(b"ls\r\x03\x04\xff") == [b"ls\r\x03\x04\xff"]


def test_keys_split_what_is_around_them() -> None:
    assert KeyMux().feed(b"ab\x01ccd\x01h\x01x") == [b"ab", Action.SWITCH, b"cd", Action.HELP, Action.EXIT]


def test_ctrl_a_twice_is_one() -> None:
    assert KeyMux().feed(b"a\x01\x01b") == [b"a\x01b"]


def test_ctrl_a_waits_for_its_key() -> None:
    mux = KeyMux()
    assert mux.feed(b"a\x01") == [b"a"]
    assert mux.feed(b"") == []
    assert mux.feed(b"xb") == [Action.EXIT, b"b"]


def test_unknown_key_is_dropped() -> None:
    assert KeyMux().feed(b"a\x01zb") == [b"ab"]


@given(st.binary(max_size=60), st.integers(0, 60))
def test_pieces_do_not_depend_on_how_the_bytes_arrive(typed: bytes, cut: int) -> None:
    def flat(pieces: list[bytes | Action]) -> list[int | Action]:
        return [x for piece in pieces for x in (piece if isinstance(piece, bytes) else [piece])]

    whole, split = KeyMux(), KeyMux()
    assert flat(whole.feed(typed)) == flat(split.feed(typed[:cut])) + flat(split.feed(typed[cut:]))


def test_help_names_every_key() -> None:
    assert all(f"Ctrl-A {key}" in key_help() for key in ("h", "x", "c", "Ctrl-A"))
