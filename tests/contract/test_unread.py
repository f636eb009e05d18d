"""A device that asks memory for more than it reads."""

from __future__ import annotations

import zmq

from tests.contract.harness import PATIENCE, RAM_BASE, Machine
from tests.waiting import wait_for
from vmesh import limits, wire
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import memory_pb2 as messages
from vmesh.v1.bus_pb2 import Description
from vmesh.v1.packet_pb2 import Packet

ASKED = 5000  # of 1 MiB each
MOST = 256 << 20  # resident bytes of memory, whose RAM has 16 MiB


def test_answers_that_are_not_read_take_no_memory_and_cost_the_device(machine: Machine) -> None:
    machine.start_memory()
    monitor = machine.monitor("memory")
    device = machine.context.socket(zmq.DEALER)
    device.setsockopt(zmq.RCVHWM, 1)
    device.setsockopt(zmq.SNDHWM, 0)
    device.connect(wire.endpoint(machine.path / "memory.sock"))
    description = Description(name="h0", kind="hostile", state_type="x", state_version=1, epoch=1, dma=True)
    description.endpoint = "ipc:///nowhere"
    for number, body in enumerate((wire.hello(common.ROLE_DEVICE, "h0"), messages.Attach(description=description)), 1):
        device.send(wire.make(body, number).SerializeToString())
        answer = Packet.FromString(device.recv())
        assert answer.WhichOneof("body") in ("welcome", "attached"), answer
    for number in range(ASKED):
        device.send(wire.make(messages.DmaRead(address=RAM_BASE, size=1 << 20), 10 + number).SerializeToString())

    def blamed() -> bool:
        return any((each.service, each.what) == ("h0", limits.BROKEN) for each in monitor.health().complaints)

    wait_for(blamed, "a complaint", PATIENCE)
    with open(f"/proc/{monitor.health().pid}/statm", encoding="ascii") as statm:
        assert int(statm.read().split()[1]) * 4096 < MOST
    device.close(0)
