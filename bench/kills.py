"""Kills devices at random moments while a Debian guest works with them, and checks every byte that it says and stores.

A work that a new kind of device should stand is a line in WORKS.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import secrets
import select
import signal
import subprocess
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench import harness
from bench.harness import BenchError
from bench.report import Report, Row, Sample, held
from vmesh.machine import Machine, runtime_root

RESTART_BAR = 0.2  # seconds from a death to the next life that answers
_DEATHS, _WITHIN = 4, 10.5  # of one device: one more, and the machine gives it up
_PAUSES = (0.0, 0.8)  # seconds between two kills
_QUIET_STEPS = 10  # without kills, to compare with
_LINES = 40
_DISK_BYTES, _BLOCK, _BLOCKS = 16 << 20, 65536, 8
_PROMPT = b"~ # "
_NOT_DEVICES = ("memory", "cpu")


@dataclass(frozen=True, slots=True)
class Work:
    """What the guest does again and again: `script`, with the step's number in $1.

    `flags` makes the machine's flags, with files in a directory; `check` gets the step's number, the lines that the
    guest said, and the directory, and says what is wrong, if anything.
    """

    flags: Callable[[Path], list[str]]
    script: tuple[str, ...]
    check: Callable[[int, list[str], Path], str]


def _check_console(step: int, said: list[str], _scratch: Path) -> str:
    clock, *lines = said
    if not clock.isdecimal() or abs(int(clock) - time.time()) > 5:
        return f"the clock says {clock}"
    expected = [f"{step} {number} the quick brown fox jumps over the lazy dog" for number in range(_LINES)]
    return next((f"expected {a!r}, got {b!r}" for a, b in zip(expected, lines, strict=False) if a != b), "") or (
        "" if len(lines) == _LINES else f"expected {_LINES} lines, got {len(lines)}"
    )


def _check_disk(step: int, said: list[str], scratch: Path) -> str:
    with (scratch / "disk").open("rb") as disk:
        disk.seek(step % 32 * _BLOCKS * _BLOCK)
        stored = hashlib.sha256(disk.read(_BLOCKS * _BLOCK)).hexdigest()
    sums = {line.split()[0] for line in said if line}
    return "" if sums == {stored} else f"the file has {stored}, the guest wrote and read {', '.join(sums)}"


def _disk(scratch: Path) -> list[str]:
    (scratch / "disk").write_bytes(bytes(_DISK_BYTES))
    return ["-drive", f"file={scratch / 'disk'},format=raw"]


WORKS = {
    "console and clock": Work(
        lambda scratch: [],
        (
            "cat /sys/class/rtc/rtc0/since_epoch; i=0",
            f"while [ $i -lt {_LINES} ]; do",
            'echo "$1 $i the quick brown fox jumps over the lazy dog"; i=$((i+1)); done',
        ),
        _check_console,
    ),
    "disk": Work(
        _disk,
        (
            f"head -c {_BLOCKS * _BLOCK} /dev/urandom >/tmp/n; sha256sum </tmp/n; s=$(($1%32*{_BLOCKS}))",
            "dd if=/tmp/n of=/dev/vda bs=64k seek=$s conv=fsync,notrunc 2>/dev/null",
            "echo 3 >/proc/sys/vm/drop_caches",
            f"dd if=/dev/vda bs=64k skip=$s count={_BLOCKS} 2>/dev/null | sha256sum",
        ),
        _check_disk,
    ),
}


class _Killer:
    """Kills the devices of a machine by turns of its own choice."""

    def __init__(self, machine: Machine, chance: random.Random, count: int) -> None:
        self.killed: Counter[str] = Counter()
        self._machine = machine
        self._chance = chance
        self._left = count
        self._last: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_DEATHS))
        self._dead: set[int] = set()
        self._next = 0.0

    @property
    def left(self) -> int:
        return self._left

    def timeout(self) -> float:
        """Seconds until the next kill."""
        return max(0.0, self._next - time.monotonic()) if self._left else 3600.0

    def look(self) -> None:
        """Kill, if it is time and there is somebody who may die."""
        now = time.monotonic()
        if not self._left or now < self._next:
            return
        self._next = now + self._chance.uniform(*_PAUSES)
        living = [
            service
            for service in self._machine.read_record().services
            if service.name not in _NOT_DEVICES and service.state == "running" and service.pid not in self._dead
        ]
        may = [each for each in living if len(t := self._last[each.name]) < _DEATHS or now - t[0] > _WITHIN]
        if may:
            victim = self._chance.choice(may)
            with suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
                self._dead.add(victim.pid)
                self._last[victim.name].append(now)
                self.killed[victim.name] += 1
                self._left -= 1


class _Guest:
    """The shell of a guest, on pipes."""

    def __init__(self, flags: list[str], name: str) -> None:
        command = harness.ours("-name", name, "-m", "512M", "-append", "loglevel=1", *flags)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._seen = b""
        self.longest = 0.0  # seconds without a byte while something was waited for

    def say(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode() + b"\n")
        self._process.stdin.flush()

    def until(self, text: bytes, killer: _Killer | None = None) -> bytes:
        """What comes before `text`. Raises BenchError if it does not come."""
        assert self._process.stdout is not None
        heard = time.monotonic()
        while text not in self._seen:
            if killer is not None:
                killer.look()
            timeout = min(harness.LIMIT, killer.timeout() if killer else harness.LIMIT)
            if select.select([self._process.stdout], [], [], timeout)[0]:
                part = os.read(self._process.stdout.fileno(), 65536)
                if not part:
                    raise BenchError(f"the machine ended before {text!r}: {self._seen[-300:]!r}")
                self._seen += part
                self.longest, heard = max(self.longest, time.monotonic() - heard), time.monotonic()
            elif time.monotonic() - heard > harness.LIMIT:
                raise BenchError(f"nothing for {harness.LIMIT:g} s before {text!r}: {self._seen[-300:]!r}")
        before, _, self._seen = self._seen.partition(text)
        return before

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(harness.LIMIT)


def measure(runs: int) -> Report:
    """`runs` kills, as many for each work."""
    harness.debian()
    rows: list[Row] = []
    seed = secrets.randbits(32)
    for number, (name, work) in enumerate(WORKS.items()):
        count = runs // len(WORKS) + (number < runs % len(WORKS))
        with harness.scratch() as scratch:
            rows += _campaign(name, work, scratch, random.Random(seed + number), count)
    return Report(f"{runs} kills of devices at random moments (seed {seed})", rows)


def _campaign(name: str, work: Work, scratch: Path, chance: random.Random, count: int) -> list[Row]:
    machine = Machine(runtime_root() / f"kills-{os.getpid()}")
    log = scratch / "log"
    guest = _Guest([*work.flags(scratch), "-D", str(log)], machine.name)
    try:
        guest.until(_PROMPT)
        # A loop that reads, not the shell, whose line editor answers in ways of its own.
        for line in ("work() {", *work.script, "}", "while read n; do work $n; echo = $n; done"):
            guest.say(line)
            guest.until(line.encode()[-20:])
        guest.say("0")
        guest.until(b"= 0\r\n")
        guest.longest = 0.0
        wrong: list[str] = []
        step = 0
        for step in range(1, _QUIET_STEPS + 1):
            wrong += _step(guest, work, step, scratch, None)
        quiet, guest.longest = guest.longest, 0.0
        killer = _Killer(machine, chance, count)
        while killer.left:
            step += 1
            wrong += _step(guest, work, step, scratch, killer)
        step += 1
        wrong += _step(guest, work, step, scratch, None)
        longest = guest.longest
    finally:
        guest.close()
    if wrong:
        raise BenchError(f"{name}: {len(wrong)} of {step} steps went wrong, the first: {wrong[0]}")
    restarts = [float(line.fields["ms"]) / 1e3 for line in harness.read_log(log) if line.event == "restarted"]
    killed = ", ".join(f"{device} {times}" for device, times in sorted(killer.killed.items()))
    return [
        Row(f"{name}: steps without a wrong byte; killed: {killed}", "count", Sample((float(step),)), digits=0),
        Row(
            f"{name}: from a death to the next life that answers",
            "s",
            Sample(tuple(restarts)),
            bar=held(f"at most {RESTART_BAR} s", max(restarts) <= RESTART_BAR),
            digits=3,
        ),
        Row(f"{name}: longest silence of the console with kills", "s", Sample((longest,)), digits=3),
        Row(f"{name}: longest silence of the console without", "s", Sample((quiet,)), digits=3),
    ]


def _step(guest: _Guest, work: Work, step: int, scratch: Path, killer: _Killer | None) -> list[str]:
    """One step of the work; gives what was wrong with it."""
    guest.say(str(step))
    said = guest.until(b"= %d\r\n" % step, killer).decode(errors="replace")
    echo, *lines = re.split(r"\r\n", said)
    if echo != str(step) or lines[-1:] != [""]:
        return [f"step {step}: typed, and got {said[:100]!r}"]
    problem = work.check(step, lines[:-1], scratch)
    return [f"step {step}: {problem}"] if problem else []
