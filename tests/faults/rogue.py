"""A device that misbehaves in the way that ROGUE names, for tests; takes the arguments of `-device vmesh-external`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import UInt32Value

from vmesh import device, errors, service, wire
from vmesh.v1 import bus_pb2, memory_pb2
from vmesh.v1 import common_pb2 as common
from vmesh.v1.common_pb2 import ROLE_DEVICE, SEVERITY_ERROR, Fault
from vmesh.v1.packet_pb2 import Packet
from vmesh.wire import Client

IMPOSTORS = (
    (common.ROLE_MONITOR, "monitor"),
    (common.ROLE_CPU, "cpu"),
    (common.ROLE_HART, "cpu"),
    (common.ROLE_IRQCHIP, "cpu"),
    (common.ROLE_MIGRATION, "migration"),
    (common.ROLE_CACHE, "cache"),
    (common.ROLE_DEVICE, "uart0"),
    (common.ROLE_CPU, "rogue"),
)
_PATIENCE = 100.0


class Rogue(device.Device):
    """One word that reads as 7."""

    kind = "rogue"
    state = UInt32Value

    def __init__(self, runtime: service.Runtime, base: int, irq: int) -> None:
        super().__init__(runtime)
        status = bus_pb2.Register(name="status", offset=8, size=4, read=bus_pb2.READ_LATCH)
        self.regions = [bus_pb2.Region(name="word", base=base, size=4096, access_sizes=4, registers=[status])]
        self.lines = [bus_pb2.Line(name="line", irq=irq)]

    def read(self, region: int, offset: int, size: int) -> int:
        return 7


class RogueService(device.DeviceService):
    def start(self) -> None:
        if os.environ["ROGUE"] == "life" and self._runtime.epoch == 1:
            self._description.epoch += 1000
        super().start()
        self._line = False
        misdeed: dict[str, Callable[[], None]] = {
            "flood": self._flood,
            "interrupts": self._raise,
            "dma": self._reach,
            "notices": lambda: self._once_it_runs(self._notify),
            "large": lambda: self._once_it_runs(self._send_much),
            "impostor": lambda: self._runtime.loop.call_in("pretend", 0.0, self._pretend),
        }
        if (action := misdeed.get(os.environ["ROGUE"])) is not None:
            action()

    def handle(self, client: Client, packet: Packet) -> Message | None:
        match os.environ["ROGUE"]:
            case "silent" if packet.WhichOneof("body") == "access_batch":
                return None
            case "limits" if packet.WhichOneof("body") == "access_batch" and self._runtime.epoch == 1:
                self._runtime.server.send(client, bus_pb2.BatchDone(epoch=1, done=(1 << 64) - 1), packet.id)
            case "blame" if packet.WhichOneof("body") == "access_batch" and self._runtime.epoch == 1:
                self._runtime.notify(SEVERITY_ERROR, "the cpu has failed", Fault(service="cpu", reason="says a device"))
            case "life" if packet.WhichOneof("body") == "access_batch" and self._runtime.epoch == 1:
                os._exit(7)
            case "nonsense" if packet.WhichOneof("body") == "access_batch":
                self._runtime.server.send(client, bus_pb2.BatchDone(epoch=9, done=1 << 60), packet.id)
                self._runtime.server.socket.send_multipart([client.identity, b"\xff" * 50])
        return super().handle(client, packet)

    def _flood(self) -> None:
        for _ in range(500):
            self._line = not self._line
            self._device.wires.set_line(0, self._line)
            self._send_update()
        self._runtime.loop.call_in("flood", 0.001, self._flood)

    def _once_it_runs(self, action: Callable[[], None]) -> None:
        """What a device breaks before it was ready ends the machine, which has not begun."""
        if self._runtime.machine.read_record().state == "running":
            action()
        else:
            self._runtime.loop.call_in("begin", 0.01, lambda: self._once_it_runs(action))

    def _notify(self) -> None:
        notice = common.Notice(severity=common.SEVERITY_INFO, text="more")
        for client in list(self._runtime.server.clients.values()):
            if client.role == common.ROLE_MONITOR and self._runtime.epoch == 1:
                while self._runtime.server.send(client, notice):
                    pass
        self._runtime.loop.call_in("notices", 0.001, self._notify)

    def _send_much(self) -> None:
        """Once, when the irqchip is there: what no connection of a device has room for."""
        for client in list(self._runtime.server.clients.values()):
            if client.role == common.ROLE_IRQCHIP and self._runtime.epoch == 1:
                much = bus_pb2.DeviceUpdate(epoch=1, sequence=2, shadows=[bus_pb2.ShadowValue(size=4)] * (1 << 20))
                self._runtime.server.send(client, much)
                return
        self._runtime.loop.call_in("much", 0.01, self._send_much)

    def _raise(self) -> None:
        assert self._raiser is not None
        while self._raiser.send(1, 1, 0, 1, 0):
            pass
        self._runtime.loop.call_in("raise", 0.001, self._raise)

    def _pretend(self) -> None:
        """Say Hello as everybody else, to everybody."""
        for other in ("memory", "cpu", "uart0"):
            for role, name in IMPOSTORS:
                address = wire.endpoint(self._runtime.machine.socket(other))
                peer = wire.Peer(self._runtime.context, address, wire.hello(role, name))
                try:
                    peer.greet(_PATIENCE)
                except errors.PeerError as error:
                    self._runtime.complain(self._runtime.name, "refused", str(error))
                else:
                    raise errors.PeerError(f"{other} takes a device for {name}")
                peer.abandon()

    def _reach(self) -> None:
        memory = self._runtime.dial("memory", ROLE_DEVICE)
        memory.greet(_PATIENCE)
        try:
            memory.request(memory_pb2.DmaRead(address=0x8000_0000, size=64), _PATIENCE)
        except errors.OutsideGrant:
            return
        raise errors.PeerError("memory gave what it should not")


def main(argv: Sequence[str]) -> int:
    parser = service.parser("rogue", __doc__)
    parser.add_argument("--base", type=service.number, required=True)
    parser.add_argument("--irq", type=service.number, required=True)
    options = parser.parse_args(argv)
    return service.run(options, lambda runtime: RogueService(runtime, Rogue(runtime, options.base, options.irq)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
