"""Input for the default guest: when it is given, and what the guest tells on its console, however that arrives."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmesh.cli.script import Form, Script

READY, STATUS = b"\x1b_vmesh:ready\x1b\\", b"\x1b_vmesh:status:5\x1b\\"
END = b"\x04"


def more(piece: int) -> bytes:
    return b"\x1b_vmesh:more:%d\x1b\\" % piece


def test_input_waits_until_the_guest_is_ready() -> None:
    script = Script(Form.AT_PROMPT)
    script.typed(b"ls\n")
    assert script.output(b"[  1.0] a line that is not ended, then silence", 0.0)
    assert script.give(1000.0) == b""
    assert script.output(READY + b"~ # ", 1000.0) == b"~ # "
    assert script.give(1000.0) == b"ls\n"


@pytest.mark.parametrize("text", [b"ls\n", b"ls"])
def test_end_of_input_is_typed_until_the_machine_ends(text: bytes) -> None:
    script = Script(Form.AT_PROMPT)
    script.typed(text)
    script.typed(b"")
    script.output(READY, 1.0)
    assert script.give(1.0) == b"ls\n" + END
    assert script.give(1.5) == b"", "what runs may have had it: not at once"
    assert script.due == 2.0
    assert script.give(2.0) == END
    script.output(READY, 2.2)
    assert script.due <= 2.2
    assert script.give(2.2) == END, "at each prompt"


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("text", [b"", b"ls\n"])
def test_who_waits_for_the_guest_does_nothing_meanwhile(form: Form, text: bytes) -> None:
    """Nothing is due at once when everything has been given that the guest wants."""
    script = Script(form)
    for piece in (text, b""):
        script.typed(piece)
    script.give(1.0)
    assert script.due > 1.0


def test_no_input_ends_the_default_guest() -> None:
    script = Script(Form.AT_PROMPT)
    script.typed(b"")
    assert script.give(0.0) == b""
    script.output(READY, 1.0)
    assert script.give(1.0) == END


def test_snapshot_gets_its_input_at_once_and_its_end_only_if_there_was_any() -> None:
    script = Script(Form.TYPED)
    script.typed(b"ls\n")
    assert script.give(0.0) == b"ls\n"
    script.typed(b"")
    assert script.give(0.0) == END

    silent = Script(Form.TYPED)
    silent.typed(b"")
    assert silent.give(0.0) == b""
    assert silent.due == float("inf")


def test_other_guests_get_what_comes_and_nothing_at_the_end() -> None:
    script = Script(Form.RAW)
    script.typed(b"abc")
    script.typed(b"")
    assert script.give(0.0) == b"abc"
    assert script.give(10.0) == b""


def test_guest_that_was_not_expected_to_tell_is_believed_when_it_does() -> None:
    """A disk that was not there: the default guest's own shell comes after all."""
    script = Script(Form.RAW)
    script.typed(b"")
    assert script.give(0.0) == b""
    script.output(READY, 1.0)
    assert script.give(1.0) == END


def test_pieces_are_given_as_they_are_asked_for_each_once() -> None:
    script = Script(Form.PIECES)
    text = bytes(range(256)) + bytes(99)
    script.typed(text)
    assert script.give(0.0) == b""
    script.output(more(0), 0.0)
    assert script.give(0.0) == b"\x01256\n" + text[:256]
    script.output(more(0), 0.0)  # asked again before it had come
    assert script.give(0.0) == b""
    script.output(more(1), 0.0)
    assert script.give(0.0) == b"\x0199\n" + text[256:]
    script.output(more(2), 0.0)
    assert script.give(0.0) == b"", "there is nothing yet"
    script.typed(b"x")
    assert script.give(0.0) == b"\x011\nx"
    script.typed(b"")
    script.output(more(3), 0.0)
    assert script.give(0.0) == b"\x010\n"


def test_status_is_what_the_guest_told() -> None:
    script = Script(Form.AT_PROMPT)
    assert script.output(b"out" + STATUS + b"Power down", 0.0) == b"outPower down"
    assert script.status == 5


def test_quiet_shows_the_commands_output_alone() -> None:
    script = Script(Form.PIECES, quiet=True)
    shown = [script.output(each, 0.0) for each in (b"OpenSBI", more(0), b"out", STATUS, b"Power down")]
    assert b"".join(shown) == b"out"
    assert script.end() == b""


def test_quiet_shows_a_boot_that_came_to_nothing() -> None:
    script = Script(Form.PIECES, quiet=True)
    assert script.output(b"Kernel panic", 0.0) == b""
    assert script.end() == b"Kernel panic"


PARTS = st.sampled_from([READY, STATUS, more(7), b"\x1b", b"\x1b_", b"\x1b_vmesh:", b"\x1b[6n", b"\\", b"text\n"])


@given(st.lists(PARTS, max_size=8).map(b"".join), st.lists(st.integers(0, 100), max_size=6))
def test_what_is_told_does_not_depend_on_how_the_bytes_arrive(data: bytes, cuts: list[int]) -> None:
    whole, split = Script(Form.PIECES), Script(Form.PIECES)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [data[begin:end] for begin, end in pairwise(places)]
    assert b"".join(split.output(part, 0.0) for part in parts) + split.end() == whole.output(data, 0.0) + whole.end()
    assert (split.status, split.give(0.0)) == (whole.status, whole.give(0.0))


def test_nothing_of_a_guest_that_tells_nonsense_is_lost_or_held_back() -> None:
    script = Script(Form.AT_PROMPT)
    long = b"\x1b_vmesh:" + b"a" * 100
    assert script.output(long, 0.0) == long
    assert script.output(b"\x1b_vmesh:status:x\x1b\\\x1b_vmesh:unheard-of\x1b\\", 0.0) == b"\x1b_vmesh:unheard-of\x1b\\"
    assert script.status is None
