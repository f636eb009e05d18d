"""A service with hostile peers in front of it, and one peer that is well-behaved and looks whether it lives."""

from __future__ import annotations

import struct
import time
from collections import Counter

from tests.contract.harness import RAM_BASE, Machine
from tests.models.hostile_bus import Device, Talker
from vmesh import errors, wire
from vmesh.board import encode as e
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import lifecycle_pb2 as lifecycle

_DEVICES: dict[str, tuple[str, tuple[str, ...]]] = {
    "uart0": ("services.devices.ns16550a", ("--irq", "10")),
    "rtc": ("services.devices.goldfish_rtc", ("--irq", "11")),
    "rng": ("services.devices.virtio_rng", ("--base", "0x10008000", "--irq", "8")),
    "test": ("services.devices.sifive_test", ()),
}
SERVICES = ("memory", "cpu", *_DEVICES)
_STEPS = 200  # between two looks
_GROWTH = 256 << 20  # bytes that a service may take more than at first
_FEATURES = "i,m,a,f,d,c,zicsr,zifencei,zicntr,sstc,svadu,sv39"


def _guest() -> bytes:
    """Reads and writes the hostile device's registers for ever; a trap begins it anew."""
    code = [
        e.auipc(e.T0, 0), e.csrw(0x305, e.T0), e.lui(e.T1, Device.BASE >> 12), e.lw(e.T2, e.T1, 0), e.lw(e.T2, e.T1, 8),
        e.sw(e.T2, e.T1, 8), e.lw(e.T2, e.T1, 16), e.sw(e.T2, e.T1, 4), e.jal(e.ZERO, -32),
    ]  # fmt: skip
    return struct.pack(f"<{len(code)}I", *code)


class Campaign:
    """The service `name` in a machine of its own. `run` raises AssertionError if it does not bear what it gets."""

    def __init__(self, name: str, seed: int) -> None:
        self._name = name
        self._machine = Machine()
        self._device: Device | None = None
        machine = self._machine
        if name == "cpu":
            program = machine.path / "program"
            program.write_bytes(_guest())
            machine.start_memory("--image", f"{RAM_BASE:#x}={program}")
            self._device = Device(machine.context, machine.path, seed)
            options = ("--harts", "2", "--features", _FEATURES, "--reset-pc", f"{RAM_BASE:#x}", "--bus-limit", "0.3")
            machine.start("services.cpu", "cpu", *options)
        else:
            machine.start_memory()
        if name in _DEVICES:
            module, arguments = _DEVICES[name]
            machine.start(module, name, *arguments)
        self._talker = Talker(machine.context, machine.path / f"{name}.sock", machine.path.name, seed)

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *_: object) -> None:
        self._talker.close()
        if self._device is not None:
            self._device.close()
        self._machine.close()

    @property
    def sent(self) -> Counter[str]:
        return self._talker.sent + (self._device.sent if self._device is not None else Counter())

    def run(self, until: float) -> None:
        """Until a time of the monotonic clock, at least once."""
        first = self._look()
        while True:
            for _ in range(_STEPS):
                self._talker.step()
                if self._device is not None:
                    self._device.step()
            grown = self._look() - first
            assert not self._talker.failures, self._talker.failures
            assert grown < _GROWTH, f"it has grown by {grown >> 20} MiB after {sum(self.sent.values())} messages"
            if time.monotonic() >= until:
                return

    def _look(self) -> int:
        """Whether it answers; gives its resident bytes."""
        peer = self._machine.connect(self._name, common.ROLE_MONITOR)
        if self._device is None:
            peer.greet(60.0)
        else:
            self._greet_meanwhile(peer)
        report = peer.request(lifecycle.Health(), 60.0)
        peer.abandon()
        assert isinstance(report, lifecycle.HealthReport)
        with open(f"/proc/{report.pid}/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * 4096

    def _greet_meanwhile(self, peer: wire.Peer) -> None:
        """The cpu may be waiting for its device to answer."""
        assert self._device is not None
        for _ in range(600):
            for _ in range(20):
                self._device.step()
            try:
                peer.greet(0.1)
                return
            except errors.PeerTimeout:
                continue
        raise AssertionError(f"{self._name} does not answer after {sum(self.sent.values())} messages")
