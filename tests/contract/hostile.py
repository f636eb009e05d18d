"""A service with hostile peers in front of it, and one peer that is well-behaved and looks whether it lives.

What has to hold: whatever its peers say, a service answers Health within a generous limit, does not grow beyond a
bound, fails in nothing that nobody foresaw, and ends with its lifeline. Peers that dial it do not end it either, nor a
device the cpu. Memory may, as nobody who uses it can do without: docs/protocol.md, "Errors".
"""

from __future__ import annotations

import builtins
import re
import signal
import struct
import subprocess
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import Message

from tests.contract.harness import IRQCHIP, RAM_BASE, ROOT, Machine
from tests.models.hostile_bus import Device, Talker
from tests.models.hostile_console import Lives, answered
from tests.models.hostile_memory import Hart, Memory
from vmesh import wire
from vmesh.board import encode as e
from vmesh.machine import LOCK, MARK, MachineDirectory
from vmesh.spawn import python
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import lifecycle_pb2 as lifecycle

_FEATURES = "i,m,a,f,d,c,zicsr,zifencei,zicntr,sstc,svadu,sv39"
_CPU = f"--harts 2 --features {_FEATURES} --reset-pc {RAM_BASE:#x} {' '.join(IRQCHIP)} --bus-limit 0.3"
_VIRTIO = "--base 0x10008000 --irq 8"


@dataclass(frozen=True, slots=True)
class _Service:
    """How it is started ({} is the machine's directory), and what stands in front of it, one after the other."""

    module: str
    arguments: str = ""
    peers: tuple[str, ...] = ("anybody", "memory")


#: Who `anybody` is: whoever dials, in every role; before the cpu, a device that it dials too.
SERVICES = {
    "memory": _Service("vmesh_services.memory", "--ram 16M", ("anybody",)),
    "cpu": _Service("vmesh_services.cpu", _CPU),
    "uart0": _Service("vmesh_services.devices.ns16550a", "--base 0x10000000 --irq 10 --chardev socket:{}/console"),
    "rtc": _Service("vmesh_services.devices.goldfish_rtc", "--base 0x101000 --irq 11"),
    "fw_cfg": _Service("vmesh_services.devices.fw_cfg", "--base 0x10100000"),
    "test": _Service("vmesh_services.devices.sifive_test", "--base 0x100000"),
    "rng": _Service("vmesh_services.devices.virtio_rng", _VIRTIO),
    "balloon": _Service("vmesh_services.devices.virtio_balloon", _VIRTIO),
    "blk": _Service("vmesh_services.devices.virtio_blk", f"{_VIRTIO} --file {{}}/disk --discard unmap --num-queues 2"),
    "net": _Service(
        "vmesh_services.devices.virtio_net", f"{_VIRTIO} --netdev stream,addr.type=unix,addr.path={{}}/peer,reconnect=1"
    ),
    "9p": _Service("vmesh_services.devices.virtio_9p", f"{_VIRTIO} --path {{}}/folder --tag host"),
    "console": _Service("vmesh_services.devices.virtio_console", f"{_VIRTIO} --chardev socket:{{}}/console"),
    "migration": _Service("vmesh_services.migration"),
    "keeper": _Service("vmesh_services.monitor.keeper", "--console uart0=socket:{}/console", ("anybody",)),
}
CASES = tuple((name, peer) for name, service in SERVICES.items() for peer in service.peers)
_STEPS = 200  # between two looks
_GROWTH = 256 << 20  # bytes that a service may take more than at first
_PATIENCE = 60.0  # seconds, for an answer to Health


class _Peer(Protocol):
    """Somebody hostile."""

    sent: Counter[str]

    def step(self) -> None: ...

    def close(self) -> None: ...


def _guest() -> bytes:
    """Reads and writes the hostile device's registers for ever; a trap begins it anew."""
    code = [
        e.auipc(e.T0, 0), e.csrw(0x305, e.T0), e.lui(e.T1, Device.BASE >> 12), e.lw(e.T2, e.T1, 0), e.lw(e.T2, e.T1, 8),
        e.sw(e.T2, e.T1, 8), e.lw(e.T2, e.T1, 16), e.sw(e.T2, e.T1, 4), e.jal(e.ZERO, -32),
    ]  # fmt: skip
    return struct.pack(f"<{len(code)}I", *code)


def _walker() -> bytes:
    """Reads a page of RAM after the other, up to the trap behind its end."""
    code = [
        e.auipc(e.T0, 0), e.csrw(0x305, e.T0), e.lui(e.T2, 1), e.lw(e.T1, e.T0, 0), e.add(e.T0, e.T0, e.T2),
        e.jal(e.ZERO, -8),
    ]  # fmt: skip
    return struct.pack(f"<{len(code)}I", *code)


def _is_unforeseen(counter: str) -> bool:
    """Whether it counts requests that failed with what is no error of vmesh's: `refused: load: ValueError`."""
    found = re.fullmatch(r"refused: \w+: (\w+)", counter)
    return found is not None and (hasattr(builtins, found[1]) or found[1] == struct.error.__name__)


class Campaign:
    """The service `name` in a machine of its own, with `peer` in front of it. `run` raises AssertionError if it does
    not bear what it gets. `lives` counts how often it was started."""

    def __init__(self, name: str, peer: str, seed: int) -> None:
        self._name, self._service, self._hostile_memory = name, SERVICES[name], peer == "memory"
        self.lives = 0
        self.ends = Counter[str]()  # of these, by what was said
        self.slowest = 0.0  # answer to Health, in seconds
        self._machine = machine = Machine()
        self._peers: list[_Peer] = []
        folder, context, socket = machine.path, machine.context, machine.path / f"{name}.sock"
        (folder / LOCK).write_bytes(MARK)
        (folder / "folder").mkdir()
        (folder / "disk").write_bytes(bytes(1 << 20))
        if self._hostile_memory:
            memory = Memory(context, folder, seed, _walker())
            self._peers += [memory, Hart(context, socket, seed, memory)]
        elif name not in ("memory", "keeper"):
            (folder / "program").write_bytes(_guest())
            machine.start_memory("--image", f"{RAM_BASE:#x}={folder / 'program'}")
        if name == "cpu" and not self._hostile_memory:
            self._peers.append(Device(context, folder, seed))
        if name == "keeper":
            directory = MachineDirectory(folder)
            self._socket = directory.kept_console("uart0")
            self._peers.append(Lives(self._socket, directory.attached_console("uart0"), seed))
        elif not self._hostile_memory or name == "migration":
            self._peers.append(Talker(context, socket, seed))
        self._start()

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self._peers:
            peer.close()
        if self._name == "keeper":  # has no lifeline
            self._machine.processes[self._name].send_signal(signal.SIGTERM)
        self._machine.close()

    @property
    def sent(self) -> Counter[str]:
        return sum((peer.sent for peer in self._peers), Counter[str]())

    def run(self, until: float) -> None:
        """Until a time of the monotonic clock, at least once."""
        while True:
            self._look()
            for _ in range(_STEPS):
                self._step()
                if self._machine.processes[self._name].poll() is not None:
                    break
            self._look()
            self._read_log()
            if time.monotonic() >= until:
                return

    def _start(self) -> None:
        self.lives += 1
        self._first = 0  # its resident bytes, when they were looked at first
        service, machine = self._service, self._machine
        arguments = service.arguments.format(*[machine.path] * service.arguments.count("{}")).split()
        if self._name == "keeper":
            command = [*python(service.module), "--machine", str(machine.path), *arguments]
            machine.processes[self._name] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        else:
            machine.start(service.module, self._name, *arguments, epoch=self.lives)

    def _step(self) -> None:
        for peer in self._peers:
            peer.step()

    def _look(self) -> None:
        """Whether it answers, in this life or the next, and has not grown."""
        began = time.monotonic()
        until = began + _PATIENCE
        while not self._answers():
            assert time.monotonic() < until, f"it does not answer after {sum(self.sent.values())} messages"
            if self._machine.processes[self._name].poll() is not None:
                self._bury()
        self.slowest = max(self.slowest, time.monotonic() - began)
        pid = self._machine.processes[self._name].pid
        with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
            resident = int(statm.read().split()[1]) * 4096
        self._first = self._first or resident
        grown = resident - self._first
        assert grown < _GROWTH, f"it has grown by {grown >> 20} MiB after {sum(self.sent.values())} messages"

    def _answers(self) -> bool:
        """Within some steps of its peers, for which it may be waiting."""
        if self._name == "keeper":
            self._step()
            with suppress(OSError):
                return answered(self._socket, 0.1)
            return False
        peer = self._machine.connect(self._name, common.ROLE_MONITOR)
        try:
            if not isinstance(self._ask(peer, peer.said), common.Welcome):
                return False
            report = self._ask(peer, lifecycle.Health())
            if not isinstance(report, lifecycle.HealthReport):
                return False
            unforeseen = [each for each in report.counters if _is_unforeseen(each)]
            assert not unforeseen, unforeseen
            return True
        finally:
            peer.abandon()

    def _ask(self, peer: wire.Peer, body: Message) -> Message | None:
        peer.send(body)
        for _ in range(_STEPS):
            self._step()
            packet = peer.receive(0.002)
            if packet is not None and packet.id:
                return wire.body_of(packet)
        return None

    def _bury(self) -> None:
        """It has ended: see above when it may."""
        process = self._machine.processes.pop(self._name)
        _, said = process.communicate()
        assert self._hostile_memory, f"it ended with status {process.returncode}: {said}"
        assert process.returncode == 1, f"it ended with status {process.returncode}: {said}"
        failures = [line for line in said.splitlines() if " error " in line]
        assert len(failures) == 1, said
        assert "Traceback" not in said, said
        self.ends[failures[0].partition("reason=")[2].replace(str(self._machine.path), "").strip('"')[:100]] += 1
        self._start()

    def _read_log(self) -> None:
        """What nobody foresaw, and was no request, is there."""
        with suppress(FileNotFoundError), open(self._machine.path / "log", encoding="utf-8") as log:
            unforeseen = [line for line in log if " unforeseen " in line]
        assert not unforeseen, unforeseen[0]
