"""Real service processes in a machine directory of their own, and the part of the cpu in front of them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from google.protobuf.message import Message

from tests import warm
from tests.waiting import LIMIT, wait_for
from vmesh import wire
from vmesh.spawn import python
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import lifecycle_pb2 as lifecycle
from vmesh.v1.bus_pb2 import Access, AccessBatch, BatchDone, DeviceUpdate
from vmesh.v1.packet_pb2 import Packet

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = LIMIT  # no test depends on how much of it is used
RAM_BASE, RAM_SIZE = 0x8000_0000, 16 << 20
#: What the cpu is told of its own parts.
IRQCHIP = ("--aclint", "0x2000000", "--plic", "0xc000000")
#: addi t0, t0, 1; wfi; j back: harts count in t0 and sleep between.
COUNTER = (0x00128293, 0x10500073, 0xFF9FF06F)
Service = subprocess.Popen[str] | warm.Process


@dataclass
class Machine:
    """A machine directory, the services started in it, and connections to them."""

    path: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="vm-", dir="/dev/shm")))
    processes: dict[str, Service] = field(default_factory=dict)
    context: zmq.Context[zmq.Socket[bytes]] = field(default_factory=zmq.Context)

    def __post_init__(self) -> None:
        self.lifeline, self._writer = os.pipe()

    def start(self, module: str, name: str, *arguments: str, epoch: int = 1) -> Service:
        """Start one of our services; its standard error is kept for `failure`."""
        return self.launch(python(module), name, *arguments, epoch=epoch)

    def launch(self, program: Sequence[str], name: str, *arguments: str, epoch: int = 1) -> Service:
        """Start a service of any language: `program` is how its command line begins."""
        arguments = ("--machine", str(self.path), "--name", name, "--epoch", str(epoch), *arguments)
        process: Service
        if [*program] == python(module := program[-1]) and module in warm.SERVICES:
            process = warm.Process(module, arguments, self.lifeline)
        else:
            command = [*program, *arguments, "--lifeline", str(self.lifeline)]
            process = subprocess.Popen(
                command, cwd=ROOT, pass_fds=[self.lifeline], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
            )
        self.processes[name] = process
        return process

    def start_memory(self, *arguments: str, ram: str = "16M") -> Service:
        return self.start("vmesh_services.memory", "memory", "--ram", ram, *arguments)

    def start_cpu(
        self, *arguments: str, harts: int = 2, code: Sequence[int] | bytes = COUNTER, memory: Sequence[str] = ()
    ) -> Service:
        """Memory, with these arguments more, and a cpu whose harts run that code."""
        program = self.path / "program"
        program.write_bytes(code if isinstance(code, bytes) else struct.pack(f"<{len(code)}I", *code))
        self.start_memory("--image", f"{RAM_BASE:#x}={program}", *memory)
        features = "i,m,a,f,d,c,zicsr,zifencei,zicntr,sstc,svadu,sv39"
        options = ["--harts", str(harts), "--features", features, "--reset-pc", f"{RAM_BASE:#x}", *IRQCHIP, *arguments]
        return self.start("vmesh_services.cpu", "cpu", *options)

    def failure(self, name: str) -> str:
        """Wait for the end of a service that fails; gives the one line it says."""
        process = self.processes[name]
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1, (process.returncode, said)
        assert said.count("\n") == 1, said
        return said

    def dial(self, service: str, role: common.Role.ValueType, *, name: str = "test", hart: int = 0) -> wire.Peer:
        """A connection that has said Hello."""
        peer = self.connect(service, role, name=name, hart=hart)
        peer.greet(PATIENCE)
        return peer

    def connect(self, service: str, role: common.Role.ValueType, *, name: str = "test", hart: int = 0) -> wire.Peer:
        said = wire.hello(role, name, machine=self.path.name, hart=hart)
        return wire.Peer(self.context, wire.endpoint(self.path / f"{service}.sock"), said)

    def monitor(self, service: str) -> Monitor:
        return Monitor(self.dial(service, common.ROLE_MONITOR))

    def hart(self, service: str, hart: int = 0) -> Hart:
        return Hart(self.connect(service, common.ROLE_HART, hart=hart))

    def raw(self, service: str) -> zmq.Socket[bytes]:
        """A DEALER that says nothing by itself."""
        made: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.RCVTIMEO, int(PATIENCE * 1000))
        made.setsockopt(zmq.RECONNECT_IVL, 5)
        made.connect(wire.endpoint(self.path / f"{service}.sock"))
        return made

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)

    def cut_lifeline(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1

    def close(self) -> None:
        """End everything; a service that does not end by itself is a failure."""
        self.cut_lifeline()
        self.context.destroy(0)
        os.close(self.lifeline)
        said, stuck = "", []
        for name, process in self.processes.items():
            try:
                said += process.communicate(timeout=PATIENCE)[1]
            except subprocess.TimeoutExpired:
                process.kill()
                said += process.communicate()[1]
                stuck.append(name)
        shutil.rmtree(self.path, ignore_errors=True)
        assert "Traceback" not in said, said
        assert not stuck, f"did not end with the lifeline: {stuck}"


@dataclass
class Monitor:
    """The monitor's side of one service."""

    peer: wire.Peer

    def ask(self, body: Message) -> Message:
        return self.peer.request(body, PATIENCE)

    def health(self) -> lifecycle.HealthReport:
        answer = self.ask(lifecycle.Health())
        assert isinstance(answer, lifecycle.HealthReport)
        return answer

    def save(self) -> lifecycle.ServiceState:
        """Pause, drain and save."""
        self.ask(lifecycle.Pause())
        self.ask(lifecycle.Drain())
        state = self.ask(lifecycle.Save())
        assert isinstance(state, lifecycle.ServiceState)
        return state

    def notice(self) -> common.Notice:
        """The next notice."""
        if not self.peer.unasked:
            packet = self.peer.receive(PATIENCE)
            assert packet is not None, "no notice came"
            self.peer.unasked.append(packet)
        packet = self.peer.unasked.popleft()
        assert packet.WhichOneof("body") == "notice", packet
        return packet.notice


class Hart:
    """A hart's side of one device."""

    def __init__(self, peer: wire.Peer) -> None:
        self.peer = peer
        welcome = peer.greet(PATIENCE)
        self.epoch = welcome.epoch
        self.window = welcome.window
        self.sequence = welcome.done + 1

    def batch(self, *accesses: Access) -> BatchDone:
        """Send the accesses as the next batch, and wait for its answer."""
        sent = AccessBatch(epoch=self.epoch, sequence=self.sequence, accesses=accesses)
        self.sequence += len(accesses)
        return self.send(sent)

    def send(self, batch: AccessBatch) -> BatchDone:
        answer = self.peer.request(batch, PATIENCE)
        assert isinstance(answer, BatchDone)
        return answer

    def read(self, offset: int, size: int = 1, region: int = 0) -> int:
        done = self.batch(Access(region=region, offset=offset, size=size))
        assert not done.bus_error, f"bus error at {offset:#x}"
        return done.value

    def write(self, offset: int, value: int, size: int = 1, region: int = 0) -> BatchDone:
        done = self.batch(Access(region=region, offset=offset, size=size, write=True, value=value))
        assert not done.bus_error, f"bus error at {offset:#x}"
        return done


class Irqchip:
    """The irqchip's side of one device: levels and shadows as told."""

    def __init__(self, machine: Machine, service: str) -> None:
        self.peer = machine.dial(service, common.ROLE_IRQCHIP)
        self.levels: dict[int, bool] = {}
        self.shadows: dict[tuple[int, int, int], int | None] = {}
        self.sequence = 0

    def apply(self, update: DeviceUpdate) -> None:
        assert update.sequence > self.sequence
        self.sequence = update.sequence
        for line in update.lines:
            self.levels[line.line] = line.level
        for shadow in update.shadows:
            key = (shadow.region, shadow.offset, shadow.size)
            self.shadows[key] = None if shadow.withdrawn else shadow.value

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Apply updates until `true()`."""
        deadline = time.monotonic() + PATIENCE
        while not true():
            packet: Packet | None
            if self.peer.unasked:
                packet = self.peer.unasked.popleft()
            else:
                packet = self.peer.receive(max(0.0, deadline - time.monotonic()))
            assert packet is not None, f"waited in vain for {what}: {self.levels}, {self.shadows}"
            assert packet.WhichOneof("body") == "device_update", packet
            self.apply(packet.device_update)


def console(path: Path) -> socket.socket:
    """Connect to a console socket, when it is there."""
    wait_for(path.exists, f"{path}")
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(str(path))
    client.settimeout(PATIENCE)
    return client


def receive(client: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes, or what came before the end."""
    data = b""
    while len(data) < count:
        piece = client.recv(count - len(data))
        if not piece:
            break
        data += piece
    return data
