"""The `vmesh` command itself: what it says to somebody who asks, and to somebody who errs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vmesh.cli.main import COMMANDS, main
from vmesh.spawn import python


def _vmesh(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(python("vmesh.cli", *arguments), capture_output=True, text=True, check=False)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = _vmesh(name, "--help")
    assert done.returncode == 0
    assert f"usage: vmesh {name}" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "command",
    [
        *(name for name in COMMANDS if name != "run"),  # whose flags are QEMU's
        *("guest fetch", "guest image", "migration inspect"),
        *(f"snapshot {action}" for action in ("save", "load", "list", "delete")),
    ],
)
def test_help_and_usage_have_the_same_placeholders_and_a_text_for_each(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    usage, *sections = re.split(r"\n\n(?=positional arguments:|options:)", text)
    usage = usage.partition("\n\n")[0]
    for section in sections:
        kind, *entries = re.split(r"\n  (?=\S)", section.partition("\n\n")[0])
        for entry in entries:
            term, _, meaning = re.sub(r"\n +", "  ", entry).partition("  ")
            assert meaning.strip(), f"{term}: a text"
            if kind == "positional arguments:":
                assert re.fullmatch(r"[A-Z|]+", term)
                assert re.search(rf"(?<![A-Z]){re.escape(term)}(?![A-Z])", usage), f"{term}: in {usage}"
    placeholders = set(re.findall(r"(?<![A-Z:/|{-])[A-Z]{2,}(?:\|[A-Z]+)*", usage))
    assert [each for each in placeholders if each not in text[len(usage) :]] == []


def test_help_imports_nothing_that_takes_time() -> None:
    code = "import sys; from vmesh.cli.main import main; main(['--help']); main(['run', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"zmq", "grpc", "google.protobuf", "libfdt", "rich", "numpy"}


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        (["frobnicate"], "expected one of run", 2),
        (["run", "-frobnicate"], "unknown flag '-frobnicate'", 2),
        (["run", "-m", "x"], "expected a size", 2),
        (["run", "-name", "a/b"], "vmesh run: -name a/b: 'a/b' cannot name a machine", 2),
        (["run", "-cpu", "rv32"], "vmesh run: -cpu rv32: expected a model rv64 or max, got 'rv32'", 2),
        (["run", "-bios", "none"], "vmesh run: -bios none: expected -kernel with it", 2),
        (["run", "-device", "vmesh-external,id=x,base=0x80000000"], "vmesh run: -device id=x: ", 2),
        (["run", "-kernel", sys.executable], "expected a 64-bit little-endian RISC-V ELF file", 1),
        (["serve", "memory", "-cpu", "rv32"], "vmesh serve memory: -cpu rv32: expected a model rv64 or max", 2),
        (["deploy", "n", "-cpu", "rv32"], "vmesh deploy: -cpu rv32: expected a model rv64 or max", 2),
        (["deploy", "--ram", "x", "n"], "expected a size such as 512m or 2g", 2),
        (["guest", "image", "--size", "x"], "expected a number of mebibytes or gibibytes", 2),
        (["guest", "fetch", "--frobnicate"], "unrecognized arguments: --frobnicate", 2),
        (["status", "there-is-none"], "no machine 'there-is-none' is running", 1),
        (["registers", "x", "--hart", "y"], "expected a number from 0 on", 2),
        (["memory", "x", "0", "--hart", "-1"], "expected a number from 0 on", 2),
        (["health", "x", "--hold", "-1"], "expected seconds, above 0", 2),
        (["migrate", "x", "unix:/x", "--downtime", "-1"], "expected a number from 0 on", 2),
        (["migrate", "--postcopy", "there-is-none", "unix:/x"], "no machine 'there-is-none' is running", 1),
        (["migrate", "there-is-none", "--postcopy", "2", "unix:/x"], "no machine 'there-is-none' is running", 1),
        (["migrate", "there-is-none", "unix:/x", "--postcopy"], "no machine 'there-is-none' is running", 1),
        (["guest", "frobnicate"], "invalid choice", 2),
    ],
)
def test_error_is_one_line_and_no_traceback(arguments: list[str], words: str, status: int) -> None:
    done = _vmesh(*arguments)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "-name", "debug-threads=on", "-print-commands", "-bios", "none", "-kernel", __file__],
        ["deploy", "--print", "compose", "x", "-cpu", "help"],
    ],
)
def test_what_is_asked_for_is_no_error(arguments: list[str]) -> None:
    done = _vmesh(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["ps"], 0),
        (["run", "-cpu", "help"], 0),
        (["completion", "bash"], 0),
        (["status", "there-is-none"], 1),
        (["frobnicate"], 2),
    ],
)
def test_closed_standard_file_is_as_dev_null(
    arguments: list[str], status: int, closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMESH_RUNTIME", str(tmp_path / "run"))
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *python("vmesh.cli", *arguments)]
    done = subprocess.run(shell, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (1 if status and "2>" not in closed else 0)


def test_output_that_has_no_room_is_said() -> None:
    with open("/dev/full", "w") as full:
        command = python("vmesh.cli", "--help")
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "vmesh: output is lost: No space left on device\n"


def test_print_commands_names_every_process_and_starts_none() -> None:
    done = _vmesh("run", "-print-commands", "-bios", "none", "-kernel", __file__, "-name", "n", "-smp", "3")
    lines = done.stdout.splitlines()
    modules = [line.split(" -m ")[1].split()[0] for line in lines]
    assert modules == [
        "vmesh_services.monitor",
        "vmesh_services.memory",
        "vmesh_services.cpu",
        "vmesh_services.devices.ns16550a",
        "vmesh_services.devices.goldfish_rtc",
        "vmesh_services.devices.sifive_test",
    ]
    assert all("/n " in line for line in lines)
    assert "--harts 3" in lines[2]
