"""gdb's packets: framing that survives anything, and what the packets mean."""

from __future__ import annotations

import random

import pytest

from vmesh_services.monitor.gdb.actions import Action, Stepping, parse_actions, step_of
from vmesh_services.monitor.gdb.packet import LIMIT, Framer, Sign, frame, unescape


def take_all(framer: Framer, data: bytes) -> list[bytes | Sign]:
    """What comes out, however the stream is cut: each byte by itself."""
    found: list[bytes | Sign] = []
    kept = bytearray()
    for byte in data:
        kept.append(byte)
        while (item := framer.take(kept)) is not None:
            found.append(item)
    assert len(kept) <= LIMIT + 4
    return found


def test_what_is_framed_is_taken() -> None:
    everything = bytes(range(256))
    for content in (b"", b"g", b"m80000000,4", everything, b"}}}}", b"$#*}"):
        assert take_all(Framer(), frame(content)) == [content]
    assert frame(b"OK") == b"$OK#9a"
    assert frame(b"a}b") == b"$a}]b#" + b"%02x" % (sum(b"a}]b") % 256)


def test_signs_come_between_packets() -> None:
    stream = b"+" + frame(b"g") + b"-\x03noise" + frame(b"?")
    assert take_all(Framer(), stream) == [Sign.ACK, b"g", Sign.NACK, Sign.INTERRUPT, b"?"]


def test_damaged_packets_are_told_apart() -> None:
    assert take_all(Framer(), b"$g#00" + frame(b"?")) == [Sign.DAMAGED, b"?"]
    assert take_all(Framer(), b"$g#zz" + frame(b"?")) == [Sign.DAMAGED, b"?"]
    assert take_all(Framer(verify=False), b"$g#00") == [b"g"]


def test_a_packet_that_was_cut_off_is_dropped() -> None:
    assert take_all(Framer(), b"$m8000" + frame(b"?")) == [b"?"]
    assert Framer().take(bytearray(b"$m8000" + frame(b"?"))) == b"?"


def test_a_packet_that_is_too_long_is_refused_and_not_kept() -> None:
    framer = Framer()
    data = bytearray(b"$" + b"x" * 10 * LIMIT)
    assert framer.take(data) is None
    assert len(data) <= LIMIT
    data += b"x#00" + frame(b"?")
    assert framer.take(data) is Sign.DAMAGED
    assert framer.take(data) == b"?"


def test_an_escape_of_nothing_is_dropped() -> None:
    assert unescape(b"ab}") == b"ab"
    assert unescape(b"a}]b") == b"a}b"


def test_garbage_yields_what_is_in_it_and_nothing_grows() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    framer = Framer()
    kept = bytearray()
    for _ in range(300):
        kept += bytes(dice.choices(b"$#}+-\x03gmZ0123456789abcdef,;:\0\xff", k=dice.randrange(2000)))
        while framer.take(kept) is not None:
            pass
        assert len(kept) <= LIMIT + 2
    kept += frame(b"g")  # ends what was begun: what comes next is whole
    while framer.take(kept) is not None:
        pass
    kept += frame(b"?")
    assert framer.take(kept) == b"?"


def test_actions_of_vcont() -> None:
    assert parse_actions("c") == [Action("c", None)]
    assert parse_actions("s:2;c") == [Action("s", 1), Action("c", None)]
    assert parse_actions("r80000000,80000010:1;C05:-1") == [
        Action("r", 0, 0x8000_0000, 0x8000_0010),
        Action("c", None),
    ]


@pytest.mark.parametrize("text", ["", "t:1", "s:0", "s:-5", "r1:1", "r1,2,3", "c:zz", ";", "r-1,5:1"])
def test_actions_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_actions(text)


def test_who_moves() -> None:
    everybody = frozenset(range(4))
    assert step_of(parse_actions("c"), 4, 0) == Stepping(frozenset())
    assert step_of(parse_actions("s:2;c"), 4, 0) == Stepping(frozenset(), 1)
    assert step_of(parse_actions("c:3"), 4, 0) == Stepping(everybody - {2})
    assert step_of(parse_actions("s"), 4, 2) == Stepping(everybody - {2}, 2)
    assert step_of(parse_actions("r1000,1010:4"), 4, 0) == Stepping(everybody - {3}, 3, 0x1000, 0x1010)
    with pytest.raises(ValueError, match="no such thread"):
        step_of(parse_actions("c:9"), 4, 0)
