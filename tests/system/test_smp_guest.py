"""Debian's kernel on four harts: all online, all at work at once, in touch by interrupts, and off at the end."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.system.conftest import NO_SELF_TESTS, Terminal
from vmesh.guest import Guest

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]
HARTS = 4
#: Each hart in turn says who it is (field 39 of its stat); then all hash the same bytes at once.
COMMAND = (
    "cat /sys/devices/system/cpu/online; "
    "for m in 1 2 4 8; do taskset $m cut -d' ' -f39 /proc/self/stat; done; "
    "for m in 1 2 4 8; do taskset $m sh -c 'yes 0123456789 | head -c 500000 | sha256sum' & done; wait; "
    "cat /proc/interrupts"
)
#: SHA-256 of what they hash.
DIGEST = "539e8b70780269b530eb50badd198e8e7f5884b483e52c79b4131ba613c8ee2f"


def test_four_harts_boot_work_and_power_off(run: Run, debian: Guest) -> None:
    machine = run("-smp", str(HARTS), "-append", f'loglevel=4 {NO_SELF_TESTS} vmesh.run="{COMMAND}"', pipes=True)

    assert machine.wait() == 0
    output = machine.output
    assert re.search(r"^0-3\n0\n1\n2\n3\n", output, re.MULTILINE), output
    assert re.findall(r"^([0-9a-f]{64}) ", output, re.MULTILINE) == [DIGEST] * HARTS, output
    # every hart was told something by others, and woken by a timer of its own
    told = [counts(output, "Rescheduling"), counts(output, "Function call")]
    assert all(map(sum, zip(*told, strict=True))), output
    assert all(counts(output, "riscv-timer")), output


def counts(output: str, name: str) -> list[int]:
    """The interrupts of each hart, from the line of /proc/interrupts that has a name."""
    found = re.search(rf"^ *\w+: +((?:\d+ +){{{HARTS}}}).*{name}", output, re.MULTILINE)
    assert found, output
    return [int(count) for count in found[1].split()]
