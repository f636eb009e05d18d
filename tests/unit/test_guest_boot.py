"""Our guests on another emulator, so that what goes wrong on vmesh is not the guest's fault."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.waiting import LIMIT, read_some
from vmesh import guest
from vmesh.board import cpu_model, devicetree, virt
from vmesh.guest import tiny

pytestmark = pytest.mark.peer


def run_in_qemu(qemu: str, flags: list[str], keys: bytes = b"", until: bytes = b"") -> str:
    """The console's output up to power-off; `keys` are typed when `until` has come."""
    command = [qemu, "-machine", "virt", "-m", "512M", "-nographic", "-no-reboot", *flags]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            output = b""
            while until not in output:
                part = read_some(process.stdout.fileno(), f"{until!r} after {output!r}")
                assert part, output
                output += part
            process.stdin.write(keys)
            process.stdin.flush()
            while part := read_some(process.stdout.fileno(), f"the end of {output!r}"):
                output += part
            assert process.wait(LIMIT) == 0
        finally:
            process.kill()
    return output.decode(errors="replace")


@pytest.fixture
def debian() -> guest.Guest:
    found = guest.find()
    if found is None:
        pytest.skip("Debian's guest is not cached (vmesh guest fetch)")
    return found


def flags(a_guest: guest.Guest, more: str = "") -> list[str]:
    initrd = ["-initrd", str(a_guest.initrd)] if a_guest.initrd else []
    append = ["-append", f"{a_guest.append} {more}"] if a_guest.append else []
    return ["-bios", a_guest.bios, "-kernel", str(a_guest.kernel), *initrd, *append]


def test_tiny_answers_and_powers_off(peer: Callable[[str], str], tmp_path: Path) -> None:
    keys = b"helx\x7fp\rinfo\rwhat is this\rpoweroff\r"

    output = run_in_qemu(peer("qemu-system-riscv64"), flags(tiny.guest(tmp_path)), keys, until=b"> ")

    assert "\r\n" + tiny.HELP in output
    assert "mhartid 0000000000000000\r\n" in output
    assert "\r\nwhat is this\r\n" in output
    assert output.endswith("Power off.\r\n")


def test_tiny_end_of_input_powers_off(peer: Callable[[str], str], tmp_path: Path) -> None:
    qemu = peer("qemu-system-riscv64")

    output = run_in_qemu(qemu, [*flags(tiny.guest(tmp_path)), "-smp", "4"], b"\x04", until=b"> ")

    assert output.endswith("> Power off.\r\n")


def test_tiny_line_that_is_too_long_is_cut(peer: Callable[[str], str], tmp_path: Path) -> None:
    qemu = peer("qemu-system-riscv64")

    output = run_in_qemu(qemu, flags(tiny.guest(tmp_path)), b"x" * 100 + b"\r\x04", until=b"> ")

    assert output.endswith("\r\n" + "x" * 63 + "\r\n> Power off.\r\n")


def test_debian_runs_the_command_on_its_command_line(peer: Callable[[str], str], debian: guest.Guest) -> None:
    command = 'vmesh.run="echo hello $(nproc) | tac; false"'

    output = run_in_qemu(peer("qemu-system-riscv64"), [*flags(debian, command), "-smp", "2"])

    assert "\r\nhello 2\r\nvmesh.run: exit status 1\r\n" in output
    assert output.rstrip().endswith("reboot: Power down")


def test_debian_shell_has_job_control_and_ends_at_end_of_input(peer: Callable[[str], str], debian: guest.Guest) -> None:
    keys = b"sleep 99 &\njobs\n\x04"

    output = run_in_qemu(peer("qemu-system-riscv64"), flags(debian), keys, until=b"~ # ")

    assert "[1]+  Running" in output
    assert "can't access tty" not in output
    assert output.rstrip().endswith("reboot: Power down")


def test_debian_finds_its_way_by_our_device_tree(
    peer: Callable[[str], str], debian: guest.Guest, tmp_path: Path
) -> None:
    ours = tmp_path / "ours.dtb"
    cpu = cpu_model.parse("rv64,zicbom=off,zicboz=off,svadu=off")  # the oldest QEMU we meet has none of these
    ours.write_bytes(devicetree.build(virt.board(512 << 20, 2, cpu)))
    command = 'vmesh.run="cat /proc/interrupts /proc/cpuinfo; ls /sys/class/rtc; nproc"'

    output = run_in_qemu(peer("qemu-system-riscv64"), [*flags(debian, command), "-smp", "2", "-dtb", str(ours)])

    assert re.search(r"riscv-timer|RISC-V INTC", output)
    assert re.search(r"SiFive PLIC +10 .*ttyS0", output)
    assert "rtc0\r\n2\r\n" in output
    assert cpu.isa.split("_")[0] in output
    assert output.rstrip().endswith("reboot: Power down")
