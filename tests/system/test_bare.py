"""Guests without firmware: what they do reaches the user, whatever the serial port is connected to."""

from __future__ import annotations

import json
import os
import socket
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.system import programs
from tests.system.conftest import Host, Terminal, counters
from tests.waiting import LIMIT, read_some, wait_for
from vmesh.board import virt
from vmesh.client import MachineClient
from vmesh.guest import tiny
from vmesh.machine import MachineDirectory
from vmesh.spawn import python

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]
LINES = 3000
FW_CFG = python("vmesh_services.devices.fw_cfg", "--hart-count", "1", "--item=opt/a")
MANY = 60 * LINES


@pytest.fixture
def image(tmp_path: Path) -> Callable[[bytes], tuple[str, ...]]:
    """Flags that run this code in a machine without firmware."""

    def flags(code: bytes) -> tuple[str, ...]:
        path = tmp_path / "guest.elf"
        path.write_bytes(programs.elf(code))
        return "-bios", "none", "-kernel", str(path)

    return flags


Image = Callable[[bytes], tuple[str, ...]]


def numbers(count: int) -> str:
    return "".join(f"{number:08x}\n" for number in range(count))


@pytest.mark.parametrize("code", [1, 7, 255])
def test_failure_code_becomes_the_exit_status(run: Run, image: Image, code: int) -> None:
    machine = run(*image(programs.fail(code)), pipes=True)

    assert machine.wait() == code
    assert machine.output == ""


def test_an_access_to_nothing_is_a_fault_and_logged_once(run: Run, image: Image, tmp_path: Path) -> None:
    log = tmp_path / "log"
    machine = run(*image(programs.touch(0x3000_0000)), "-d", "guest_errors", "-D", str(log), pipes=True)

    assert machine.wait() == 5  # load access fault
    assert machine.output.count("access fault: nothing is mapped there") == 1
    assert "address=0x30000000" in machine.output
    assert counters(log, "cpu")["faults"] == 2


def test_output_is_complete_and_in_order(run: Run, image: Image) -> None:
    machine = run(*image(programs.count(LINES)), pipes=True)

    assert machine.wait() == 0
    assert machine.output == numbers(LINES)


def test_output_is_complete_however_often_it_is_paused(host: Host, run: Run, image: Image) -> None:
    # More than has room on the way here: the guest cannot end before somebody reads it.
    machine = run(*image(programs.count(MANY)), "-name", "printer", "-S", pipes=True)
    wait_for(lambda: host.ps().get("printer", {}).get("state") == "paused", "the machine to be paused")
    retired = []
    with MachineClient(MachineDirectory(host.runtime / "printer"), timeout=LIMIT) as client:
        for _ in range(10):
            client.resume()
            time.sleep(0.01)
            client.pause()
            retired += [hart.retired for hart in client.status().harts]
        client.resume()

    assert machine.wait() == 0
    assert machine.output == numbers(MANY)
    assert retired == sorted(retired)
    assert retired[0] < retired[-1]  # it came on between the pauses


def test_paused_start_runs_nothing_until_resume(host: Host, run: Run, image: Image) -> None:
    machine = run(*image(programs.count(LINES)), "-name", "late", "-S", pipes=True)
    wait_for(lambda: host.ps().get("late", {}).get("state") == "paused", "the machine to be paused")

    with MachineClient(MachineDirectory(host.runtime / "late"), timeout=LIMIT) as client:
        assert [(hart.pc, hart.retired) for hart in client.status().harts] == [(0x1000, 0)]
    assert machine.output == ""

    host.vmesh("resume", "late")
    assert machine.wait() == 0
    assert machine.output == numbers(LINES)


def test_registers_are_the_guests(host: Host, run: Run, image: Image) -> None:
    run(*image(programs.sleep(a0=1234)), "-name", "sleeper", pipes=True)

    def registers() -> dict[str, int]:
        with MachineClient(MachineDirectory(host.runtime / "sleeper"), timeout=LIMIT) as client:
            return {each.name: each.value for each in client.registers().registers}

    wait_for(lambda: "sleeper" in host.ps(), "the machine")
    wait_for(lambda: registers()["a0"] == 1234, "the guest to set a0")
    assert 0x8000_0000 <= registers()["pc"] < 0x8000_0010
    assert "no machine 'nobody' is running" in host.vmesh("registers", "nobody", status=1)
    assert host.vmesh("registers", "sleeper", "--hart", "3", status=1).count("\n") == 1
    host.vmesh("stop", "sleeper")


def test_items_of_fw_cfg_are_read_and_copied(run: Run, image: Image, tmp_path: Path) -> None:
    (tmp_path / "a,b").write_bytes(b"of a file\n")
    items = ["-fw_cfg", f"opt/file,file={tmp_path}/a,,b", "-fw_cfg", "name=opt/text,string=one,,two"]
    # Selectors are in the order of names, behind QEMU's own three.
    for selector, text in ((0x23, "of a file\n"), (0x24, "one,two")):
        machine = run(*image(programs.firmware_item(selector, len(text))), *items, pipes=True)
        assert machine.wait() == 0
        assert machine.output == 2 * text


def test_without_items_there_is_no_fw_cfg(run: Run, image: Image) -> None:
    assert run(*image(programs.touch(virt.FW_CFG.range.base)), pipes=True).wait() == 5  # load access fault


def test_a_snapshot_with_other_items_is_refused(host: Host, run: Run, image: Image, tmp_path: Path) -> None:
    flags = (*image(programs.sleep(a0=7)), "-fw_cfg", f"opt/a,file={tmp_path}/item")
    (tmp_path / "item").write_text("one")
    machine = run(*flags, "-name", "saved", pipes=True)
    wait_for(lambda: host.ps().get("saved", {}).get("state") == "running", "the machine")
    (tmp_path / "item").write_text("two")  # it was read when the machine started: a next life has the same
    host.vmesh("swap", "saved", "fw_cfg", "--", *FW_CFG)
    host.vmesh("snapshot", "save", "saved", str(tmp_path / "saved"))
    host.vmesh("stop", "saved")
    machine.wait()

    loaded = run(*flags, "-loadvm", str(tmp_path / "saved"), pipes=True)

    assert loaded.wait() == 1
    assert "state of fw-cfg, of a machine with other items (-fw_cfg) or harts" in loaded.output
    (tmp_path / "item").write_text("one")
    run(*flags, "-loadvm", str(tmp_path / "saved"), "-name", "loaded", pipes=True)
    wait_for(lambda: host.ps().get("loaded", {}).get("state") == "running", "the machine")
    host.vmesh("stop", "loaded")


def test_two_machines_at_once(host: Host, run: Run, image: Image) -> None:
    flags = image(tiny.build())
    first, second = (run(*flags, "-name", name) for name in ("first", "second"))
    for machine in (first, second):
        machine.expect(tiny.PROMPT)
    assert {"first", "second"} <= host.ps().keys()

    first.type("only here\r")
    first.expect("only here\nonly here\n> ")
    for machine in (first, second):
        machine.type("poweroff\r")
        assert machine.wait() == 0
    assert "only here" not in second.output


def test_the_built_in_guest_where_no_other_is(run: Run, tmp_path: Path) -> None:
    (tmp_path / "vmesh").mkdir()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    (tmp_path / "vmesh" / "native").symlink_to(cache / "vmesh" / "native")

    machine = run(XDG_CACHE_HOME=str(tmp_path))

    assert "booting the small built-in guest" in machine.expect("a machine made of processes")
    machine.expect(tiny.PROMPT)
    assert "mhartid 0000000000000000\n" in machine.ask("info", tiny.PROMPT)
    machine.type("\x04")
    assert machine.wait() == 0
    assert "Power off." in machine.output


def test_ctrl_a_x_ends_and_gives_the_terminal_back(run: Run, image: Image) -> None:
    machine = run(*image(tiny.build()))
    machine.expect(tiny.PROMPT)
    assert not machine.terminal_modes() & termios.ECHO

    machine.type("\x01x")

    assert machine.wait() == 0
    assert "terminated by Ctrl-A x" in machine.output
    assert machine.terminal_modes() & termios.ECHO


def test_serial_to_a_file(run: Run, image: Image, tmp_path: Path) -> None:
    path = tmp_path / "console"

    assert run(*image(programs.count(LINES)), "-serial", f"file:{path}", pipes=True).wait() == 0

    assert path.read_text() == numbers(LINES)


def test_serial_to_a_file_on_a_full_disk_is_said_and_the_guest_goes_on(run: Run, host: Host, image: Image) -> None:
    flags = "-serial", "file:/dev/full", "-name", "full", "-no-shutdown"
    machine = run(*image(programs.count(LINES)), *flags, pipes=True)

    def status() -> dict[str, object]:
        found: dict[str, object] = json.loads(host.vmesh("status", "full", "--json"))
        return found

    wait_for(lambda: "full" in host.ps() and status()["runState"] == "shutdown", "the guest's end")
    wait_for(lambda: status()["warnings"], "the warning")
    assert status()["warnings"] == ["console of uart0: cannot write /dev/full: No space left on device"]
    host.vmesh("stop", "full")
    machine.wait()


def test_serial_to_nowhere(run: Run, image: Image) -> None:
    machine = run(*image(programs.count(LINES)), "-serial", "null", pipes=True)

    assert machine.wait() == 0
    assert machine.output == ""


def test_serial_on_a_socket_waits_for_its_peer(run: Run, image: Image, tmp_path: Path) -> None:
    path = tmp_path / "console.sock"
    machine = run(*image(programs.count(LINES)), "-serial", f"unix:{path},server=on", pipes=True)
    wait_for(path.exists, "the socket")

    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(LIMIT)
        wait_for(lambda: peer.connect_ex(str(path)) == 0, "the device to listen")
        output = b""
        while part := peer.recv(65536):
            output += part

    assert machine.wait() == 0
    assert output.decode() == numbers(LINES)


def test_serial_on_a_pseudo_terminal(run: Run, host: Host, image: Image) -> None:
    machine = run(*image(tiny.build()), "-serial", "pty", "-name", "pty", pipes=True)
    machine.expect("char device redirected to ")
    path = machine.expect(" (label uart0)\n")
    assert f"uart0: filename=pty:{path}\n" in host.vmesh("monitor", "pty", stdin="info chardev\n")

    port = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        output = b""
        deadline = time.monotonic() + LIMIT
        while b"hello\r\nhello\r\n" not in output:  # the guest drops what comes before it has its port
            assert time.monotonic() < deadline, output
            os.write(port, b"hello\r")
            with suppress(AssertionError):
                output += read_some(port, "an answer", limit=1.0)
        os.write(port, b"poweroff\r")
        while b"Power off." not in output:
            more = read_some(port, "the guest's power-off")
            assert more, output
            output += more
    finally:
        os.close(port)
    assert machine.wait() == 0
