"""A device whose memory service says what it should not: it answers its monitor, or its life ends in order."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import zmq
from google.protobuf.message import Message

from tests.contract.cases import COPIER
from tests.contract.harness import RAM_BASE, Hart, Machine
from tests.waiting import wait_for
from vmesh import segment, wire
from vmesh.v1.bus_pb2 import Access, AccessBatch
from vmesh.v1.common_pb2 import ERROR_BAD_REQUEST, Done, Error, Hello, Welcome
from vmesh.v1.memory_pb2 import Attach, Attached, DmaDone, Grant, NeedPages, Segment

SIZE = 1 << 16


@dataclass
class Memory:
    """In a machine, in the place of memory; `answer` makes what is said to all but Hello and Attach."""

    machine: Machine
    answer: Callable[[Message], Message]
    segments: list[Segment] = field(default_factory=list)

    def serve(self, ended: int) -> None:
        with self.machine.context.socket(zmq.ROUTER) as router:
            router.bind(wire.endpoint(self.machine.path / "memory.sock"))
            poller = zmq.Poller()
            poller.register(router, zmq.POLLIN)
            poller.register(ended, zmq.POLLIN)
            while not any(where == ended for where, _ in poller.poll()):
                sender, frame = router.recv_multipart()
                packet = wire.parse(frame)
                body = wire.body_of(packet)
                assert body is not None
                match body:
                    case Hello():
                        said: Message = Welcome(major=1, name="memory", epoch=1)
                    case Attach():
                        said = Attached(segments=self.segments, grants=[Grant(base=RAM_BASE, size=SIZE, writable=True)])
                    case _:
                        said = self.answer(body)
                router.send_multipart([sender, wire.make(said, packet.id).SerializeToString()])

    @contextmanager
    def served(self) -> Iterator[None]:
        reader, writer = os.pipe()
        thread = threading.Thread(target=self.serve, args=(reader,))
        thread.start()
        try:
            yield
        finally:
            os.close(writer)
            thread.join()
            os.close(reader)


def copy(hart: Hart) -> None:
    """Have the copier use memory; without waiting."""
    values = (RAM_BASE, RAM_BASE + 8, 8, 1)
    accesses = [Access(offset=8 * number, size=8, write=True, value=value) for number, value in enumerate(values)]
    hart.peer.send(AccessBatch(epoch=hart.epoch, sequence=hart.sequence, accesses=accesses))


def test_a_device_that_is_told_without_end_of_pages_that_do_not_come_is_well(machine: Machine) -> None:
    stride = segment.flags_stride(SIZE)
    segment.create(machine.path / "ram", SIZE)
    segment.create(machine.path / "flags", segment.FLAG_ARRAYS * stride)  # none is present
    ram = Segment(
        name="ram", path=str(machine.path / "ram"), base=RAM_BASE, size=SIZE, writable=True,
        flags_path=str(machine.path / "flags"), flags_stride=stride,
    )  # fmt: skip
    asked: list[Message] = []

    def at_once(body: Message) -> Message:
        assert isinstance(body, NeedPages)
        asked.append(body)
        return Done()

    with Memory(machine, at_once, [ram]).served():
        COPIER.start(machine)
        copy(machine.hart(COPIER.name))
        wait_for(lambda: len(asked) > 3, "requests for pages")
        assert machine.monitor(COPIER.name).health().counters["page_waits"] > 3


@pytest.mark.parametrize(
    "said",
    [Done(), DmaDone(data=b"short"), Attached(), Error(code=ERROR_BAD_REQUEST, text="no"), Error()],
    ids=["another", "short", "attached", "refused", "nameless"],
)
def test_nonsense_from_memory_ends_this_life_of_a_device(machine: Machine, said: Message) -> None:
    """It is not said to the hart as if its access were wrong: the access is made by the next life."""
    with Memory(machine, lambda body: said).served():
        COPIER.start(machine)
        hart = machine.hart(COPIER.name)
        copy(hart)
        line = machine.failure(COPIER.name)
        assert "memory" in line or "DmaRead" in line, line
        while (packet := hart.peer.receive()) is not None:
            assert not packet.id, packet
