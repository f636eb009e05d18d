"""`vmesh top NAME`: what a machine does right now, and above all whether it is stuck."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vmesh import show, waiting
from vmesh.cli.terminal import RawTerminal
from vmesh.client import GatewayError, MachineClient, connect
from vmesh.machine import MachineError
from vmesh.v1 import cpu_pb2, gateway_pb2
from vmesh.v1.gateway_pb2 import MachineStatus

STDIN = 0
_SLOW_MIPS = 5.0  # a hart that runs, and retires less
_IDLE_MIPS = 1.0  # harts that wait, and retire less
_STARVED = 0.5  # of a core that the cpu's running harts get
_SPIN_BYTES = 64  # a hart whose pc stays within so much is in a small loop
_SAMPLES = 8
_WINDOW = 3.0  # seconds that rates are taken over, if there were several looks
_OWES_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What the gateway said, and when: seconds of a monotonic clock."""

    at: float
    status: MachineStatus


def top(name: str, interval: float, *, once: bool) -> int:
    """A table every `interval` seconds, until q; printed once where stdout is no terminal. Returns the exit status."""
    once = once or not sys.stdout.isatty()
    try:
        with connect(name) as client:
            samples = [_sample(client)]
            if once:
                for _ in range(_SAMPLES - 1):
                    time.sleep(interval / (_SAMPLES - 1))
                    samples.append(_sample(client))
                width = None if sys.stdout.isatty() else 120
                Console(width=width, highlight=False).print(_screen(samples))
                return 0
            return _live(client, samples, interval)
    except (MachineError, GatewayError) as error:
        print(f"vmesh top: {error}", file=sys.stderr)
        return 1


def _live(client: MachineClient, samples: list[Sample], interval: float) -> int:
    hint = Text("q quits", style="dim")
    with RawTerminal(STDIN, signals=True), Live(Text("..."), screen=True, auto_refresh=False) as live:
        while True:
            ready = waiting.readable(*([STDIN] if os.isatty(STDIN) else []), seconds=interval)
            if ready and os.read(STDIN, 64)[:1] in (b"q", b"Q", b"\x1b"):
                return 0
            samples = [*samples[-_SAMPLES + 1 :], _sample(client)]
            live.update(Group(_screen(samples), hint), refresh=True)


def _sample(client: MachineClient) -> Sample:
    return Sample(time.monotonic(), client.status(usage=True))


def _screen(samples: Sequence[Sample]) -> Group:
    new = samples[-1]
    old = next((each for each in samples if new.at - each.at <= _WINDOW), samples[-2:][0])
    seconds = max(new.at - old.at, 1e-6)
    head, style = verdict(samples)
    ratio = (new.status.guest_seconds - old.status.guest_seconds) / seconds
    messages = (_messages(new.status) - _messages(old.status)) / seconds
    bus = (
        f"guest time runs at {ratio:.2f} of the host's; {messages:,.0f} messages/s, "
        f"{(new.status.bus.sync_round_trips - old.status.bus.sync_round_trips) / seconds:,.0f} round trips/s, "
        f"{(new.status.bus.doorbells - old.status.bus.doorbells) / seconds:,.0f} doorbells/s"
    )
    return Group(
        Text(show.state(new.status)), Text(head, style=style), Text(bus), _harts(old, new), _services(old, new)
    )


def verdict(samples: Sequence[Sample]) -> tuple[str, str]:
    """Whether the machine is stuck, slow, idle or at work, as one line, and in which style to print it."""
    old, new = samples[0], samples[-1]
    status, seconds = new.status, max(new.at - old.at, 1e-6)
    if status.state == gateway_pb2.MACHINE_PAUSED:
        return "PAUSED: `vmesh resume` lets it go on", "yellow"
    if status.state != gateway_pb2.MACHINE_RUNNING:
        return gateway_pb2.MachineState.Name(status.state).removeprefix("MACHINE_"), "yellow"
    for service in status.services:
        if service.state in ("hung", "dead", "restarting"):
            return f"STUCK: {service.name} is {service.state}: {service.last_error}", "bold red"
        if service.owes_seconds > _OWES_SECONDS:
            return f"STUCK: {service.name} has not answered for {service.owes_seconds:.0f} s", "bold red"
    waiting = {hart.hart: hart.waits_for for hart in status.harts if hart.state == cpu_pb2.HART_BUS}
    before = {hart.hart: hart for hart in old.status.harts}
    speed, busy = 0.0, False
    for hart in status.harts:
        mips = (hart.retired - before[hart.hart].retired) / seconds / 1e6 if hart.hart in before else 0.0
        seen = [each for sample in samples for each in sample.status.harts if each.hart == hart.hart]
        runs = all(each.state == cpu_pb2.HART_RUNNING for each in seen)
        if hart.hart in waiting and mips == 0.0:
            return f"STUCK: hart {hart.hart} waits for {waiting[hart.hart] or 'a device'}", "bold red"
        if runs and mips == 0.0:
            return f"STUCK: hart {hart.hart} runs, but retires nothing", "bold red"
        places = [each.pc for each in seen]
        if runs and len(places) > 2 and max(places) - min(places) < _SPIN_BYTES:
            return f"BUSY LOOP: hart {hart.hart} is in the {_SPIN_BYTES} bytes around {hart.pc:#x}", "bold yellow"
        speed, busy = speed + mips, busy or runs
    cores = _cores(old, new, "cpu", seconds)
    if busy and speed < _SLOW_MIPS and cores < _STARVED:
        return f"SLOW: {speed:.1f} MIPS: the host gives the cpu service {100 * cores:.0f} % of a core", "bold yellow"
    if busy and speed < _SLOW_MIPS:
        return f"SLOW: {speed:.1f} MIPS: round trips to devices, or code that is being compiled", "yellow"
    if not busy and speed < _IDLE_MIPS:
        return "IDLE: every hart waits for an interrupt (for input, a timer, a device)", "green"
    return f"RUNNING at {speed:,.0f} MIPS" + ("" if busy else ", with waits in between"), "green"


def _harts(old: Sample, new: Sample) -> Table:
    table = Table("hart", "doing", "mode", "pc", box=None, header_style="bold", pad_edge=False)
    table.add_column("MIPS", justify="right")
    before = {hart.hart: hart.retired for hart in old.status.harts}
    for hart in new.status.harts:
        mips = (hart.retired - before.get(hart.hart, hart.retired)) / (new.at - old.at) / 1e6
        mode = show.PRIVILEGES.get(hart.privilege, "?")
        table.add_row(str(hart.hart), show.hart_state(hart), mode, f"0x{hart.pc:016x}", f"{mips:,.1f}")
    return table


def _services(old: Sample, new: Sample) -> Table:
    table = Table("service", "kind", "pid", "epoch", "state", box=None, header_style="bold", pad_edge=False)
    for name in ("CPU %", "RSS MiB", "PSS MiB", "accesses/s", "batches/s"):
        table.add_column(name, justify="right")
    seconds = new.at - old.at
    before = {service.name: service for service in old.status.services}
    for service in new.status.services:
        former = before.get(service.name, service)
        rates = [
            f"{max(0, service.counters[name] - former.counters[name]) / seconds:,.0f}"
            if name in service.counters
            else ""
            for name in ("accesses", "batches")
        ]
        row = [service.name, service.kind, str(service.pid), str(service.epoch), service.state]
        table.add_row(*row, *_used(former.usage, service.usage, seconds), *rates)
    earlier = {other.pid: other.usage for other in old.status.others}
    for other in new.status.others:
        row = [other.name, "", str(other.pid), "", ""]
        table.add_row(*row, *_used(earlier.get(other.pid, other.usage), other.usage, seconds), "", "")
    return table


def _used(old: gateway_pb2.Usage, new: gateway_pb2.Usage, seconds: float) -> tuple[str, str, str]:
    pss = f"{new.pss_bytes / (1 << 20):,.1f}" if new.pss_bytes else ""
    percent = max(0.0, 100 * (new.cpu_seconds - old.cpu_seconds) / seconds)
    return f"{percent:.0f}", f"{new.rss_bytes / (1 << 20):,.1f}", pss


def _cores(old: Sample, new: Sample, kind: str, seconds: float) -> float:
    """Cores that the services of a kind had."""
    before = {service.name: service.usage.cpu_seconds for service in old.status.services}
    used = (s.usage.cpu_seconds - before.get(s.name, 0.0) for s in new.status.services if s.kind == kind)
    return sum(used) / seconds


def _messages(status: MachineStatus) -> int:
    """What the harts sent and the devices told, as the cpu and the devices count them."""
    return status.bus.batches + sum(service.counters.get("updates", 0) for service in status.services)
