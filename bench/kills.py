"""Kills devices at random moments while a Debian guest works with them, and checks every byte that it says and stores.

What the guest does is in bench/kill_works.py.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import select
import signal
import subprocess
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from bench import harness
from bench.harness import BenchError
from bench.kill_works import Work, select_works
from bench.report import Report, Row, Sample, held
from vmesh.machine import MachineDirectory, runtime_root

RESTART_BAR = 0.2  # seconds from a death to the next life that answers
_DEATHS, _WITHIN = 4, 10.5  # of one device: one more, and the machine gives it up
_PAUSES = (0.0, 0.8)  # seconds between two kills
_QUIET_STEPS = 10  # without kills, to compare with
_PROMPT = b"~ # "
_WIDE = "stty cols 500"  # so that the line editor puts no line ends into what it echoes
_ASK_ERRORS = "errors"
_ERRORS = f"{_ASK_ERRORS}() {{ dmesg -r | grep '^<[0-3]>'; }}"
_LOOP = "while read c; do $c; echo = $c; done"
_NOT_DEVICES = ("memory", "cpu")


class _Killer:
    """Kills the devices of a machine by turns of its own choice."""

    def __init__(self, machine: MachineDirectory, chance: random.Random, count: int) -> None:
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


def measure(runs: int, only: Sequence[str] = ()) -> Report:
    """`runs` kills, as many for each work, or for those named. Raises BenchError."""
    works = select_works(only)
    harness.debian()
    rows: list[Row] = []
    restarts: list[float] = []
    seed = secrets.randbits(32)
    for number, (name, work) in enumerate(works.items()):
        count = runs // len(works) + (number < runs % len(works))
        with harness.scratch() as scratch, ExitStack() as stack:
            scratch.chmod(0o755)
            done = _campaign(name, work, scratch, stack, random.Random(seed + number), count)
            rows += done[0]
            restarts += done[1]
    rows.append(
        Row(
            "all: from a death to the next life that answers",
            "s",
            Sample(tuple(restarts)),
            bar=held(f"at most {RESTART_BAR} s", max(restarts) <= RESTART_BAR),
            digits=3,
        )
    )
    return Report(f"{runs} kills of devices at random moments (seed {seed})", rows)


def _campaign(
    name: str, work: Work, scratch: Path, stack: ExitStack, chance: random.Random, count: int
) -> tuple[list[Row], list[float]]:
    """The rows, and how many seconds each restart took."""
    machine = MachineDirectory(runtime_root() / f"kills-{os.getpid()}")
    log = scratch / "log"
    place = work.prepare(scratch, stack)
    guest = _Guest([*place.flags, "-D", str(log)], machine.name)
    try:
        guest.until(_PROMPT)
        # A loop that reads, not the shell, whose line editor answers in ways of its own.
        variables = "; ".join(f"{key}={value}" for key, value in place.variables.items()) or ":"
        for line in (_WIDE, variables, *work.first, "work() {", *work.script, "}", _ERRORS, _LOOP):
            guest.say(line)
            guest.until(line.encode()[-20:])
        guest.say("work 0")
        guest.until(b"= work 0\r\n")
        errors = _errors(guest)
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
        wrong += [f"the kernel says {line}" for line in _errors(guest)[len(errors) :]]
    finally:
        guest.close()
    if wrong:
        raise BenchError(f"{name}: {len(wrong)} of {step} steps went wrong, the first: {wrong[0]}")
    restarts = [float(line.fields["ms"]) / 1e3 for line in harness.read_log(log) if line.event == "restarted"]
    killed = ", ".join(f"{device} {times}" for device, times in sorted(killer.killed.items()))
    rows = [
        Row(
            f"{name}: steps without a wrong byte or an error; killed: {killed}",
            "count",
            Sample((float(step),)),
            digits=0,
        ),
        Row(f"{name}: from a death to the next life that answers", "s", Sample(tuple(restarts)), digits=3),
        Row(f"{name}: longest silence of the console with kills", "s", Sample((longest,)), digits=3),
        Row(f"{name}: longest silence of the console without", "s", Sample((quiet,)), digits=3),
    ]
    return rows, restarts


def _errors(guest: _Guest) -> list[str]:
    """What the guest's kernel has logged of errors and worse."""
    guest.say(_ASK_ERRORS)
    said = guest.until(f"= {_ASK_ERRORS}\r\n".encode()).decode(errors="replace")
    return [line for line in said.split("\r\n") if line.startswith("<")]


def _step(guest: _Guest, work: Work, step: int, scratch: Path, killer: _Killer | None) -> list[str]:
    """One step of the work; gives what was wrong with it."""
    guest.say(command := f"work {step}")
    said = guest.until(f"= {command}\r\n".encode(), killer).decode(errors="replace")
    echo, *lines = re.split(r"\r\n", said)
    if echo != command or lines[-1:] != [""]:
        return [f"step {step}: typed, and got {said[:100]!r}"]
    problem = work.check(step, lines[:-1], scratch)
    return [f"step {step}: {problem}"] if problem else []
