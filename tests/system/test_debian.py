"""Debian's kernel on the mesh: from the command to the shell and back."""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.conftest import BRIEF, NO_SELF_TESTS, PROMPT, Host, Terminal, counters
from vmesh.guest import Guest

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]
ROUND_TRIPS = 2000  # that a boot may cost


def test_without_input_boots_to_the_shell_and_powers_off(run: Run, debian: Guest, tmp_path: Path) -> None:
    log = tmp_path / "log"

    machine = run("-D", str(log), pipes=True)

    assert machine.wait() == 0
    assert "OpenSBI v" in machine.output
    assert "Linux version 6." in machine.output
    assert "Ctrl-D or 'exit' powers off." in machine.output
    assert PROMPT in machine.output
    assert machine.output.rstrip().endswith("reboot: Power down")
    assert 0 < counters(log, "cpu")["sync_round_trips"] <= ROUND_TRIPS
    assert counters(log, "uart0")["console_bytes_lost"] == 0


@pytest.mark.parametrize(
    ("flags", "processors", "least", "most"),
    [
        (("-m", "128M"), 1, 60_000, 131_072),
        (("-m", "2G"), 1, 1_900_000, 2_097_152),
        (("-smp", "8"), 8, 400_000, 524_288),
    ],
)
def test_memory_and_harts_are_those_asked_for(
    run: Run, debian: Guest, flags: tuple[str, ...], processors: int, least: int, most: int
) -> None:
    machine = run(*flags, "-append", f'{BRIEF} vmesh.run="nproc; head -1 /proc/meminfo"', pipes=True)

    assert machine.wait() == 0
    found = re.search(r"^(\d+)\nMemTotal: +(\d+) kB$", machine.output, re.MULTILINE)
    assert found, machine.output
    assert int(found[1]) == processors
    assert least < int(found[2]) <= most


def test_items_of_fw_cfg_are_files(run: Run, debian: Guest, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(3000)  # each byte is an access
    (tmp_path / "item").write_bytes(content)
    items = ("-fw_cfg", f"opt/org.example/file,file={tmp_path}/item", "-fw_cfg", "name=opt/text,string=one,,two")
    show = "cd /sys/firmware/qemu_fw_cfg; cat rev; find . -type f | sort; cd by_name/opt; sha1sum org.example/file/raw"
    machine = run(*items, "-append", f'{BRIEF} vmesh.run="{show}; cat text/raw"', pipes=True)

    assert machine.wait() == 0
    assert f"{hashlib.sha1(content).hexdigest()}  org.example/file/raw\none,two" in machine.output
    assert "./by_name" not in machine.output  # which are links
    assert re.findall(r"^\./by_key/(\d+)/raw$", machine.output, re.MULTILINE) == ["32", "33", "34", "35", "36"]


@pytest.mark.parametrize(("cpu", "mode"), [("rv64,sv48=off", "sv39"), ("rv64,sv57=on", "sv57")])
def test_paging_is_as_the_cpu_model_says(run: Run, debian: Guest, cpu: str, mode: str) -> None:
    machine = run("-cpu", cpu, "-append", f'{BRIEF} vmesh.run="grep mmu /proc/cpuinfo"', pipes=True)

    assert machine.wait() == 0
    assert re.search(rf"^mmu\s*: {mode}$", machine.output, re.MULTILINE), machine.output


def test_commands_from_a_pipe(host: Host, debian: Guest) -> None:
    """With the last one not even ended, and its status for the machine's."""
    answer = host.script("-append", BRIEF, stdin="uname -m\necho $((6*7)); exit 3", status=3)

    assert "\nriscv64\n" in answer
    assert "\n42\n" in answer


def test_quiet_shows_what_the_script_writes_and_nothing_else(host: Host, debian: Guest) -> None:
    text = random.Random(7).randbytes(500).hex()  # several pieces, in one line
    script = f"echo {text} | wc -c\ncat <<'X'\n\ttab \x03\x04\x7f\\n\nX\nfalse\n"

    assert host.script("-quiet", stdin=script, status=1) == "1001\n\ttab \x03\x04\x7f\\n\n"
    assert host.script("-quiet", "-append", f"{NO_SELF_TESTS} vmesh.run=cat", stdin="to cat") == "to cat\n"


def test_commands_from_a_pipe_for_a_snapshot_at_a_prompt(host: Host, run: Run, debian: Guest, tmp_path: Path) -> None:
    machine = run("-append", BRIEF, "-name", "first")
    machine.expect(PROMPT)
    host.vmesh("snapshot", "save", "first", str(tmp_path / "saved"))
    machine.type("\x04")
    assert machine.wait() == 0

    answer = host.script("-loadvm", str(tmp_path / "saved"), stdin="echo $((6*7))\n")

    assert "\n42\n" in answer


def test_shell_answers(shell: Terminal) -> None:
    assert shell.ask("uname -m") == "riscv64\n"


def test_cpu_is_what_the_board_says(shell: Terminal) -> None:
    answer = shell.ask("cat /proc/cpuinfo")

    assert re.search(r"^isa\s*: rv64imafdc", answer, re.MULTILINE)
    assert re.search(r"^mmu\s*: sv48$", answer, re.MULTILINE)
    assert answer.count("processor") == 1


def test_clock_tells_the_hosts_time(shell: Terminal) -> None:
    before = int(time.time())
    told = int(shell.ask("cat /sys/class/rtc/rtc0/since_epoch"))

    assert before <= told <= time.time()


def test_floating_point_in_userland(shell: Terminal) -> None:
    assert shell.ask("awk 'BEGIN{print 2/3, 1e9*1e9}'") == "0.666667 1000000000000000000\n"


def test_ps_lists_every_process_with_its_state(host: Host, shell: Terminal) -> None:
    machine = host.ps()["shared"]

    services = {each["name"]: each for each in machine["services"]}
    assert {name: each["kind"] for name, each in services.items()} == {
        "memory": "memory", "cpu": "cpu", "uart0": "ns16550a", "rtc": "goldfish-rtc", "test": "sifive-test"
    }  # fmt: skip
    assert {each["state"] for each in services.values()} == {machine["state"]} == {"running"}
    assert {each["epoch"] for each in services.values()} == {1}
    for pid in (machine["pid"], *(each["pid"] for each in services.values())):
        assert Path(f"/proc/{pid}/stat").exists()


def test_status_shows_harts_and_bus(host: Host, shell: Terminal) -> None:
    status = host.vmesh("status", "shared")

    assert "machine 'shared' is running" in status
    assert re.search(r"^0 +(waiting for an interrupt|running) +[MSU] +0x[0-9a-f]{16} +[\d,]+$", status, re.MULTILINE)
    assert re.search(r"^sync round trips +[1-9][\d,]*$", status, re.MULTILINE)


def test_registers_are_shown(host: Host, shell: Terminal) -> None:
    registers = dict(re.findall(r"([a-z]\w*) +([0-9a-f]{16})", host.vmesh("registers", "shared")))

    assert {"pc", "sp", "a0", "f0", "mstatus", "satp", "stvec"} <= registers.keys()
    assert int(registers["satp"], 16) >> 60 == 9  # Sv48


def test_pause_and_resume_by_command(host: Host, shell: Terminal) -> None:
    host.vmesh("pause", "shared")
    try:
        assert "machine 'shared' is paused" in host.vmesh("status", "shared")
        assert {each["state"] for each in host.ps()["shared"]["services"]} == {"paused"}
    finally:
        host.vmesh("resume", "shared")
    assert shell.ask("echo $((6*7))") == "42\n"


def test_guest_time_stands_still_while_paused(host: Host, shell: Terminal) -> None:
    def uptime() -> float:
        return float(shell.ask("cut -d' ' -f1 /proc/uptime"))

    began = time.monotonic()
    before = uptime()
    host.vmesh("pause", "shared")
    time.sleep(2)
    host.vmesh("resume", "shared")
    passed, real = uptime() - before, time.monotonic() - began

    assert 0 <= passed < real - 1.9  # of seconds


def test_prompt_behind_ctrl_a_c(shell: Terminal) -> None:
    shell.type("\x01c")
    shell.expect("(vmesh) ")
    assert "VM status: running" in shell.ask("info status", "(vmesh) ")
    assert "CPU#0\npc " in shell.ask("info registers", "(vmesh) ")
    assert "unknown command: 'flop'" in shell.ask("flop", "(vmesh) ")
    shell.type("\x01c")
    assert shell.ask("echo back") == "back\n"
    shell.type("\x01c")
    shell.expect("(vmesh) ")
    shell.type("info na\t")
    shell.expect("info name")
    shell.type("\n")
    said = shell.expect("(vmesh) ")
    shell.type("\x01c")
    assert said.split()[-1] == "shared"


def test_help_behind_ctrl_a_h(shell: Terminal) -> None:
    shell.type("\x01h")
    shell.expect("Ctrl-A x       end the machine")
    assert shell.ask("echo still there") == "still there\n"


def test_keys_for_signals_go_to_the_guest(shell: Terminal) -> None:
    shell.type("echo sleeps; sleep 1000\n")
    shell.expect("\nsleeps\n")
    shell.interrupt()
    assert shell.ask("echo $?") == "130\n"


def test_reboot_resets_and_power_off_ends(run: Run, debian: Guest) -> None:
    machine = run("-append", f"loglevel=4 {NO_SELF_TESTS}")
    machine.expect(PROMPT)
    machine.type("reboot -f\n")
    machine.expect("OpenSBI v")
    machine.expect(PROMPT)

    machine.type("poweroff -f\n")

    assert machine.wait() == 0


def test_reboot_with_no_reboot_ends(run: Run, debian: Guest) -> None:
    machine = run("-no-reboot", "-append", f'{NO_SELF_TESTS} vmesh.run="reboot -f"', pipes=True)

    assert machine.wait() == 0
    assert machine.output.count("OpenSBI v") == 1
    assert machine.output.rstrip().endswith("reboot: Restarting system")


def test_uboot_on_opensbi_takes_commands(run: Run, debian: Guest) -> None:
    assert debian.uboot is not None
    machine = run("-bios", debian.bios, "-kernel", str(debian.uboot))
    machine.expect("OpenSBI v")
    machine.expect("stop autoboot")
    machine.type(" ")
    machine.expect("=> ")
    assert "U-Boot 20" in machine.ask("version", "=> ")
    machine.type("reset\n")
    machine.expect("OpenSBI v")
    machine.expect("stop autoboot")

    machine.type("\x01x")

    assert machine.wait() == 0
    assert "terminated by Ctrl-A x" in machine.output


def test_firmware_alone(run: Run, debian: Guest) -> None:
    machine = run("-bios", "default")
    machine.expect("OpenSBI v")
    machine.expect("Boot HART ID")

    machine.type("\x01x")

    assert machine.wait() == 0
