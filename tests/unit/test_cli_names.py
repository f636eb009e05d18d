"""NAME may be left out where one machine runs; `vmesh ps` on terminals of any width; hosts that cannot run machines."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vmesh import guest, machine
from vmesh.board.errors import BoardError
from vmesh.cli import control, main, plan, ps
from vmesh.cli import memory as memory_command
from vmesh.cli import migrate as migrate_command
from vmesh.cli.flags.parsing import parse
from vmesh.client import GatewayError
from vmesh.machine import MachineDirectory, MachineError, MachineRecord, ServiceRecord
from vmesh.v1 import gateway_pb2


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vmesh-") as directory:
        monkeypatch.setenv("VMESH_RUNTIME", directory + "/run")
        yield Path(directory)


@contextmanager
def machines(*names: str) -> Iterator[list[MachineDirectory]]:
    made = [machine.create(name) for name in names]
    yield made
    for each in made:
        each.remove()
        os.close(each.lock_fd)


def test_without_a_name_it_is_the_only_one(runtime: Path) -> None:
    with pytest.raises(MachineError, match="no machine is running"):
        machine.find("")
    with machines("a"):
        assert machine.find("").name == "a"
        with machines("b"):
            with pytest.raises(MachineError, match="expected NAME, several machines run: a, b"):
                machine.find("")
            assert machine.find("b").name == "b"


def parsed(monkeypatch: pytest.MonkeyPatch, module: Any, function: str, words: list[str]) -> Any:
    """The options that the command is called with."""
    found: list[Any] = []

    def command(*given: Any, **more: Any) -> int:
        found.append((given, more))
        return 0

    monkeypatch.setattr(module, function, command)
    assert main.main(words) == 0
    return found[0]


@pytest.mark.parametrize(
    ("words", "name", "address", "length"),
    [
        ("0x1000", "", 0x1000, 256),
        ("0x1000 64", "", 0x1000, 64),
        ("m 0x1000", "m", 0x1000, 256),
        ("m 0x1000 64 --physical", "m", 0x1000, 64),
        ("--hart 1 m 0x1000", "m", 0x1000, 256),
        ("7 0x1000", "7", 0x1000, 256),  # a machine of that name runs
    ],
)
def test_words_of_memory(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, words: str, name: str, address: int, length: int
) -> None:
    with machines("7"):
        ((options,), _) = parsed(monkeypatch, memory_command, "memory", ["memory", *words.split()])
    assert (options.name, options.address, options.length) == (name, address, length)


@pytest.mark.parametrize(
    ("words", "found", "said"),
    [
        (
            "0x80000000 16",
            None,
            "a virtual address that hart 0 maps to memory, got 0 (--physical takes a physical one)",
        ),
        ("0x80000000 16 --physical", None, "a physical address where memory is, got 0"),
        ("0x80000000 16", b"12", "there is no memory at the virtual address 0x80000002"),
        ("0x80000000 16 --physical", b"12", "there is no memory at the physical address 0x80000002"),
    ],
)
def test_memory_that_is_not_there_is_said_with_the_kind_of_address(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, found: bytes | None, said: str
) -> None:
    class Client:
        def read_memory(self, address: int, size: int, *, hart: int, physical: bool) -> bytes:
            if found is None:  # as services/cpu/inspection.py says it: tests/contract/test_cpu.py
                there = (
                    "physical address where memory is"
                    if physical
                    else f"virtual address that hart {hart} maps to memory"
                )
                raise GatewayError(f"memory: expected a {there}, got 0")
            return found

    monkeypatch.setattr(memory_command, "connect", lambda name: nullcontext(Client()))
    assert main.main(["memory", "m", *words.split()]) == 1
    assert capsys.readouterr().err.endswith(f"{said}\n")


@pytest.mark.parametrize(
    ("words", "name", "uri"),
    [
        ("tcp:127.0.0.1:4444", "", "tcp:127.0.0.1:4444"),
        ("m tcp:127.0.0.1:4444 --detach", "m", "tcp:127.0.0.1:4444"),
        ("--downtime 20 m unix:/x", "m", "unix:/x"),
        ("--status", "", None),
        ("--status m", "m", None),
    ],
)
def test_words_of_migrate(monkeypatch: pytest.MonkeyPatch, words: str, name: str, uri: str | None) -> None:
    ((options,), _) = parsed(monkeypatch, migrate_command, "migrate", ["migrate", *words.split()])
    assert (options.name, options.uri) == (name, uri)


@pytest.mark.parametrize(
    ("words", "function", "given"),
    [
        ("registers --hart 1 m", "control", ("registers", "m", 1)),
        ("registers", "control", ("registers", "", 0)),
        ("device_add m d -drive x -drive y", "device_add", ("m", "d", ["x", "y"], [], [])),
        ("device_add -drive x d", "device_add", ("", "d", ["x"], [], [])),
        ("device_del d", "device_del", ("", "d")),
    ],
)
def test_words_of_others(monkeypatch: pytest.MonkeyPatch, words: str, function: str, given: tuple[object, ...]) -> None:
    assert parsed(monkeypatch, control, function, words.split())[0] == given


def test_status_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status = gateway_pb2.MachineStatus(name="m", state=gateway_pb2.MACHINE_RUNNING)

    @contextmanager
    def connected(name: str) -> Iterator[object]:
        yield SimpleNamespace(status=lambda: status)

    monkeypatch.setattr(control, "connect", connected)
    assert main.main(["status", "--json"]) == 0
    assert '"state": "MACHINE_RUNNING"' in capsys.readouterr().out


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 200])
def test_a_list_for_terminals_of_any_width(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    """What there is room for is whole; what is left out is named."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    services = [ServiceRecord("virtio-blk-0", "virtio-blk", 1234567, 1, "running")]
    with machines("machine-1") as (made,):
        made.write_record(MachineRecord("machine-1", 1234566, 0.0, "running", tuple(services)))
        assert ps.ps(as_json=False) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width
    if width >= 60:
        (line,) = [line for line in lines if "virtio-blk-0" in line]
        assert "1234567" in line
        assert "running" in line
    assert any("not shown here" in line for line in lines) == (width < 100)


def test_another_host_is_refused_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="aarch64"))
    for words in (["run", "-nographic"], ["serve", "cpu"]):
        assert main.main(words) == 1
        assert (
            capsys.readouterr().err == f"vmesh {words[0]}: machines run on x86-64 hosts only so far, this is aarch64\n"
        )
    assert main.main(["run", "--help"]) == 0


def test_the_default_guest_has_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With less its kernel panics, and the machine runs until it is killed."""
    monkeypatch.setattr(guest, "find", object)
    for words, enough in (("-m 64M", False), ("-m 127M", False), ("-m 128M", True), ("-m 1M -bios none", True)):
        options = parse(words.split())
        if enough:
            assert plan.board_of(options).ram.size == options.memory_bytes
        else:
            with pytest.raises(BoardError, match="the default guest, Debian's kernel, needs 128M at least"):
                plan.board_of(options)
    monkeypatch.setattr(guest, "find", lambda: None)  # the small one of ours is content with less
    assert plan.board_of(parse(["-m", "64M"])).ram.size == 64 << 20


def test_a_package_that_is_not_there_is_not_taken_from_an_index(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    monkeypatch.delitem(sys.modules, "vmesh.deploy.engines", raising=False)
    monkeypatch.delattr("vmesh.deploy.engines", raising=False)
    assert main.main(["deploy", "--on", "docker", "m"]) == 1
    said = capsys.readouterr().err
    assert "make dev" in said
    assert "pip install" not in said
    assert len(said.splitlines()) == 1
