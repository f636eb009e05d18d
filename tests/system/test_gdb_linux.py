"""Debian's gdb holds Debian's kernel: Ctrl-C, registers, a breakpoint in the kernel, steps, and on it goes."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable

import pytest

from tests.peers.test_gdb import BATCH
from tests.system.conftest import Host, Terminal
from tests.waiting import LIMIT, wait_for

pytestmark = pytest.mark.system


def test_a_kernel_is_stopped_stepped_and_let_go(host: Host, shell: Terminal, peer: Callable[[str], str]) -> None:
    found = re.search(
        r"^(\w+) t \w*sys_newuname$", shell.ask("grep -i -m1 'riscv_sys_newuname$' /proc/kallsyms"), re.M | re.I
    )
    assert found, "the kernel names its system calls otherwise"
    place = int(found[1], 16)
    commands = (
        f"target remote {host.runtime}/shared/gdb", 'printf "attached\\n"',
        "continue", 'printf "interrupted, satp %#lx\\n", $satp', "info threads", "x/2i $pc",
        f"hbreak *{place:#x}", "continue", 'printf "met %#lx in mode %d\\n", $pc, $priv',
        'printf "return %#lx\\n", $ra', "stepi", "stepi", 'printf "now %#lx\\n", $pc',
        "watch *(long *)$sp", "delete", "detach",
    )  # fmt: skip
    process = subprocess.Popen(
        [peer("gdb-multiarch"), *BATCH, *(word for each in commands for word in ("-ex", each))],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said = _until(process, "attached")
        wait_for(lambda: host.ps()["shared"]["state"] == "running", "gdb's continue")
        process.send_signal(signal.SIGINT)
        said += _until(process, "Hardware assisted breakpoint 1")
        wait_for(lambda: host.ps()["shared"]["state"] == "running", "gdb's continue")
        shell.type("uname -s\n")
        rest, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.wait(LIMIT)
    said += rest
    print(said)
    shell.expect("uname -s\n")
    assert shell.expect("~ # ") == "Linux\n"

    assert "received signal SIGINT" in said
    assert re.search(r"interrupted, satp 0x9\w+", said), "the kernel's page tables, Sv48"
    assert f"met {place:#x} in mode 1" in said
    assert re.search(r"return 0xffffffff\w+", said)
    assert re.search(r"now 0xffffffff\w+", said)
    assert f"now {place:#x}\n" not in said
    assert shell.ask("echo $((6*7))") == "42\n"


def _until(process: subprocess.Popen[str], text: str) -> str:
    """What gdb says up to the line that has `text`."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"gdb ended before {text!r}: {said}")
