"""HMP without a machine: the line editor, expressions, how lines are parsed, how memory is shown."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmesh.v1.bus_pb2 import SPACE_IO
from vmesh.v1.memory_pb2 import AddressMap, MapRequest
from vmesh.v1.packet_pb2 import Packet
from vmesh_services.monitor.control import Control, Work
from vmesh_services.monitor.hmp import commands, dump
from vmesh_services.monitor.hmp.command import Call, Command, Expression, Format, LineError
from vmesh_services.monitor.hmp.editor import LineEditor
from vmesh_services.monitor.hmp.expression import ExpressionError, evaluate
from vmesh_services.monitor.hmp.info import BY_NAME, TOPICS
from vmesh_services.monitor.operations import Request, Roster
from vmesh_services.monitor.qmp.handlers import execute

WORDS = ["info", "info status", "stop", "system_reset", "system_powerdown"]
NOBODY = cast(Control, None)  # for what needs no machine


def feed(typed: bytes, editor: LineEditor | None = None) -> tuple[str, list[str]]:
    editor = editor or LineEditor("> ", lambda line: [word for word in WORDS if word.startswith(line)])
    keys = [editor.key(byte) for byte in typed]
    return "".join(echo for echo, _ in keys), [line for _, line in keys if line is not None]


def test_editor_gives_lines_and_echo() -> None:
    assert feed(b"stop\rcont\n") == ("stop\ncont\n", ["stop", "cont"])


def test_editor_newline_behind_return_is_no_line() -> None:
    assert feed(b"stop\r\ncont\r\n")[1] == ["stop", "cont"]


def test_editor_erases() -> None:
    assert feed(b"\x7fab\x7fc\r") == ("ab\b \bc\n", ["ac"])
    assert feed(b"abc\x15d\r")[1] == ["d"]


def test_editor_ctrl_c_gives_an_empty_line() -> None:
    assert feed(b"quit\x03\r") == ("quit^C\n\n", ["", ""])


def test_editor_arrows_recall() -> None:
    editor = LineEditor("> ", lambda line: [])
    feed(b"one\rtwo\r", editor)
    assert feed(b"\x1b[A\x1b[A\x1b[A\r", editor)[1] == ["one"]
    assert feed(b"\x1b[A\x1b[B\r", editor)[1] == [""]


def test_editor_completes() -> None:
    assert feed(b"sto\t\r")[1] == ["stop "]
    assert feed(b"system_\tr\t\r")[1] == ["system_reset "]
    echo, _ = feed(b"system_\t")
    assert "system_reset  system_powerdown" in echo


def test_editor_shows_the_line_anew() -> None:
    assert feed(b"sto\x12") == ("sto\n> sto", [])


@given(st.binary(max_size=200))
def test_editor_echoes_nothing_that_moves_the_cursor_elsewhere(typed: bytes) -> None:
    echo, lines = feed(typed)
    assert all(c.isprintable() or c in "\n\b" for c in echo)
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0x10", 16),
        ("010", 8),
        ("1 + 2 * 3", 7),
        ("(1+2)*3", 9),
        ("-1", (1 << 64) - 1),
        ("~0 & 0xff", 255),
        ("7 / 2 % 2", 1),
        ("'A'", 65),
        ("$pc + 4", 0x1004),
        ("$PC", 0x1000),
    ],
)
def test_expression(text: str, value: int) -> None:
    assert evaluate(text, {"pc": 0x1000}) == value


@pytest.mark.parametrize("text", ["", "1 +", "(1", "1)", "$foo", "1/0", "1 2", "@", "(" * 500 + "1" + ")" * 500])
def test_expression_that_is_none(text: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate(text, {})


@given(st.text(max_size=60))
def test_expression_of_anything_is_a_value_or_an_error(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        assert 0 <= evaluate(text, {"pc": 1}) < 1 << 64


def command(parameters: str) -> Command:
    return Command(("it",), parameters, "", lambda call: "")


def test_parameters_of_x() -> None:
    assert command("fmt:/,addr:l").parse("/4xg $sp + 8") == {"fmt": Format(4, "x", 8), "addr": Expression("$sp + 8")}
    assert command("fmt:/,addr:l").parse("0") == {"fmt": Format(), "addr": Expression("0")}


def test_parameters_of_memsave() -> None:
    parsed = command("addr:l,size:l,file:s").parse('0x1000 +  4 (1 + 3) "a b"')
    assert parsed == {"addr": Expression("0x1000 +  4"), "size": Expression("(1 + 3)"), "file": "a b"}


def test_parameters_flags_and_what_may_be_missing() -> None:
    migrate = command("detach:-d,resume:-r,uri:s")
    assert migrate.parse("-d tcp:h:1") == {"detach": True, "uri": "tcp:h:1"}
    assert command("name:s?").parse("") == {}
    assert command("name:s?").usage == "it [name]"
    assert migrate.usage == "it [-d] [-r] uri"


@pytest.mark.parametrize(("parameters", "text"), [("", "more"), ("a:s", ""), ("f:/,a:l", "/4z 1"), ("a:l", "")])
def test_parameters_that_are_wrong(parameters: str, text: str) -> None:
    with pytest.raises(LineError):
        command(parameters).parse(text)


def test_help_has_every_command_and_topic() -> None:
    text = commands.help_text()
    assert all(f"{each.usage} -- {each.help}\n" in text for each in commands.COMMANDS)
    assert all(f"info {topic.usage}" in commands.help_text("info") for topic in TOPICS)
    assert commands.help_text("xp").startswith("xp /fmt addr -- ")
    assert "no display" in commands.help_text("screendump")


def test_lines_that_are_none_are_answered() -> None:
    assert commands.execute(NOBODY, "") == ""
    assert commands.execute(NOBODY, "flop") == "unknown command: 'flop'\n"
    assert commands.execute(NOBODY, "sotp") == "unknown command: 'sotp', did you mean 'stop'?\n"
    assert commands.execute(NOBODY, "info flop") == "unknown command: 'info flop'\n"
    assert "the board has no display" in str(commands.execute(NOBODY, "screendump a.ppm"))
    assert 'Try "help x"' in str(commands.execute(NOBODY, "x"))


def test_completion() -> None:
    assert commands.complete(NOBODY, "migrate_s") == [
        "migrate_set_capability",
        "migrate_set_parameter",
        "migrate_start_postcopy",
    ]
    assert commands.complete(NOBODY, "info st") == ["status"]
    assert "info" in commands.complete(NOBODY, "help ")
    assert commands.complete(NOBODY, "x /4xw ") == []


# What QEMU 7.2 prints for the same bytes.
DATA = bytes.fromhex("970200001386820273254 0f183b50202".replace(" ", ""))


@pytest.mark.parametrize(
    ("form", "lines"),
    [
        (Format(4, "x", 4), ["0000000000001000: 0x00000297 0x02828613 0xf1402573 0x0202b583"]),
        (Format(2, "u", 8), ["0000000000001000:   180854351210742423   144877716322133363"]),
        (
            Format(9, "d", 1),
            ["0000000000001000: 151   2   0   0  19 134 130   2", "0000000000001008: 115"],
        ),
        (Format(4, "o", 4), ["0000000000001000:       01227  0240503023 036120022563  0200532603"]),
        (Format(6, "c", 0), [r"0000000000001000: '\x97' '\x02' '\x00' '\x00' '\x13' '\x86'"]),
        (
            Format(6, "x", 4),
            [
                "0000000000001000: 0x00000297 0x02828613 0xf1402573 0x0202b583",
                "0000000000001010: Cannot access memory",
            ],
        ),
    ],
)
def test_memory_is_shown_as_by_qemu(form: Format, lines: list[str]) -> None:
    assert list(dump._values(DATA, form, 0x1000)) == lines


def test_instructions() -> None:
    lines = list(dump._instructions(DATA[:8] + b"\x01\x45\x00\x00\x13", Format(5, "i"), 0x1000))
    assert lines[0].split() == ["0x0000000000001000:", "00000297", "auipc", "t0,", "0"]
    assert lines[2].split() == ["0x0000000000001008:", "4501", "c.li", "a0,", "0"]
    assert lines[3].split() == ["0x000000000000100a:", "0000", "c.unimp"] or ".short" in lines[3]
    assert lines[4].endswith("Cannot access memory")


@pytest.mark.parametrize("name", ["stop", "cont", "system_reset"])
def test_what_a_command_may_do_is_what_it_may_in_qmp(name: str) -> None:
    """Such as to mend a machine that a broken device has stopped."""
    run_state = SimpleNamespace(pause=lambda: iter(()), resume=lambda: iter(()), reset=lambda: iter(()))
    control = cast(Control, cast(Any, SimpleNamespace(supervisor=SimpleNamespace(run_state=run_state))))
    here, there = commands.execute(control, name), execute(control, name, {})
    assert isinstance(here, Work)
    assert isinstance(there, Work)
    assert (here.exclusive, here.mends) == (there.exclusive, there.mends)
    assert there.mends == (name != "system_reset")


def test_mtree_has_every_region_of_every_space_also_one_that_moves() -> None:
    found = AddressMap()
    found.segments.add(name="ram", base=0x8000_0000, size=1 << 20, writable=True)
    device = found.devices.add(name="mov0")
    device.regions.add(name="control", base=0x400_0000, size=16)
    device.regions.add(name="moving", size=0x1000, aperture_base=0x5000_0000, aperture_size=0x10_0000, absent=True)
    device.regions.add(name="port", base=0x60, size=4, space=SPACE_IO)
    control = SimpleNamespace(roster=Roster("memory", "cpu", ("mov0",)), reserved=[("plic", 0xC00_0000, 0x60_0000)])
    work = BY_NAME["mtree"].run(Call(cast(Control, control), 0, {}))
    assert isinstance(work, Work)
    assert next(work.parts) == [Request("memory", MapRequest())]
    with pytest.raises(StopIteration) as done:
        work.parts.send([Packet(address_map=found)])
    assert (
        done.value.value
        == """\
address-space: memory
  0000000000000000-ffffffffffffffff (prio 0, i/o): system
    0000000004000000-000000000400000f (prio 0, i/o): mov0.control [service mov0]
    000000000c000000-000000000c5fffff (prio 0, i/o): plic [service cpu]
    0000000050000000-00000000500fffff (prio 0, i/o): mov0.moving [moves within, size 0x1000] [service mov0]
    0000000080000000-00000000800fffff (prio 0, ram): ram [service memory]
address-space: io
    0000000000000060-0000000000000063 (prio 0, i/o): mov0.port [service mov0]
"""
    )
