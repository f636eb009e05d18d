"""Debian's shell on the virtio console: on the terminal, on a socket, and while the device is killed."""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.conftest import BRIEF, PROMPT, Host, Terminal
from tests.waiting import LIMIT
from vmesh.guest import Guest

pytestmark = pytest.mark.system

Run = Callable[..., Terminal]
HVC = ("-device", "virtio-serial-device", "-device", "virtconsole,chardev=c")
ON_TERMINAL = ("-serial", "null", "-chardev", "stdio,id=c,mux=on", "-append", f"console=hvc0 {BRIEF}", *HVC)
LINES = 2000
KILLS = 4  # a device that dies more often within a short time is given up


def receive(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = peer.recv(size - len(data))
        assert part
        data += part
    return data


def test_a_shell_on_the_terminal(run: Run, debian: Guest) -> None:
    machine = run(*ON_TERMINAL)
    machine.expect(PROMPT)
    assert machine.ask("tty") == "/dev/hvc0\n"
    machine.type("echo sleeps; sleep 1000\n")
    machine.expect("\nsleeps\n")
    machine.interrupt()
    assert machine.ask("echo $?") == "130\n"
    machine.type("\x01x")
    assert machine.wait() == 0
    assert "terminated by Ctrl-A x" in machine.output


def test_beside_the_serial_port_on_a_socket(run: Run, debian: Guest, tmp_path: Path) -> None:
    path = tmp_path / "s"
    machine = run("-chardev", f"socket,id=c,path={path},server=on,wait=off", "-append", BRIEF, *HVC)
    machine.expect(PROMPT)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(LIMIT)
        peer.connect(str(path))
        machine.ask("exec 3<>/dev/hvc0; stty raw -echo <&3; echo raw >&3")
        assert receive(peer, 4) == b"raw\n"
        machine.type("head -c 10000 <&3 | sha256sum\n")
        typed = random.Random(4).randbytes(10_000)
        peer.sendall(typed)
        machine.expect(hashlib.sha256(typed).hexdigest())
        machine.type("seq 2000 >&3\n")
        expected = "".join(f"{number}\n" for number in range(1, 2001)).encode()
        got = receive(peer, len(expected))
    assert got == expected
    machine.type("\x01x")
    assert machine.wait() == 0


def test_killed_devices_lose_nothing_and_say_nothing_twice(host: Host, run: Run, debian: Guest) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    machine = run(*ON_TERMINAL, "-name", "hvc")
    machine.expect(PROMPT)
    machine.type(f"for i in $(seq {LINES}); do echo line $i; done; cat\n")
    machine.expect("\nline 1\n")
    killed = set[int]()
    for _ in range(KILLS):
        pid = host.next_life("hvc", "console0", killed)
        time.sleep(moments.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    expected = "".join(f"line {number}\n" for number in range(2, LINES))
    assert machine.expect(f"line {LINES}\n") == expected
    machine.type("still here\n")
    machine.expect("still here\nstill here\n")
    machine.type("\x01x")
    assert machine.wait() == 0
