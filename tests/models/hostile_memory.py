"""A memory service that answers what dials it with sense and with nonsense, at once, late, twice or not at all; and a
hart that has a device use it."""

from __future__ import annotations

import os
import struct
from collections import Counter
from contextlib import suppress
from pathlib import Path

import zmq
from google.protobuf.message import DecodeError, Message

from tests.models.hostile_bus import BODIES, RAM_BASE, Inventor
from vmesh import segment, wire
from vmesh.v1 import bus_pb2, common_pb2, memory_pb2
from vmesh.v1.packet_pb2 import Packet
from vmesh.virtio.device import DRIVER_OK, NEEDS_RESET
from vmesh.virtio.mmio import Offset

SIZE = 1 << 20
_QUEUE_BYTES = 0x4000  # of RAM, for the rings of one
_QUEUES, _ENTRIES = 4, 16
_BUFFERS = RAM_BASE + SIZE - _QUEUES * _QUEUE_BYTES - 0x20000  # up to the rings
_VERSION = struct.pack("<IBHIH8s", 21, 100, 0xFFFF, 8192, 8, b"9P2000.L")  # how 9p begins
_LATER = 32  # answers that are owed
_AT_FIRST = ("hello", "attach", "map_request")  # always answered at last: else a service starts for half a minute
_SENSE_AT_FIRST, _SENSE = 0.8, 0.97  # how many answers are right
_NONSENSE = {"late": 6, "never": 0.2, "twice": 3, "spoilt": 8, "no packet": 1, "another": 6}


class Memory:
    """Stands where memory does. `code` is what RAM begins with. Call `step` often; `sent` counts what was no
    answer that memory may give, and how many were."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], machine: Path, seed: int, code: bytes = b"") -> None:
        self.inventor = Inventor(seed, dict.fromkeys(("path", "flags_path"), _paths(machine)))
        self.sent: Counter[str] = Counter()
        self._late: list[tuple[bytes, Packet]] = []
        self._who: dict[bytes, None] = {}
        ram, flags = machine / "ram.seg", machine / "ram.flags"
        stride = segment.flags_stride(SIZE)
        segment.create(ram, SIZE)
        segment.create(flags, segment.FLAG_ARRAYS * stride)
        self._ram, self._flags = (memoryview(segment.attach(path, writable=True)) for path in (ram, flags))
        self._flags[: SIZE // segment.PAGE] = bytes(self.inventor.random.choices((0, 1), k=SIZE // segment.PAGE))
        self._ram[: len(code)] = code
        self._segment = memory_pb2.Segment(
            name="ram",
            path=str(ram),
            base=RAM_BASE,
            size=SIZE,
            writable=True,
            flags_path=str(flags),
            flags_stride=stride,
        )
        self._router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.setsockopt(zmq.SNDHWM, 1000)
        self._router.bind(wire.endpoint(machine / "memory.sock"))

    def step(self) -> None:
        """Answer a request, or say something unasked, or have a guest write its rings, or a page be absent."""
        rng = self.inventor.random
        while self._router.poll(0):
            sender, frame = self._router.recv_multipart()[:2]
            self._who[sender] = None
            for former in list(self._who)[:-16]:
                del self._who[former]
            with suppress(DecodeError):
                packet = Packet.FromString(frame)
                self.inventor.listen(packet)
                self._answer(sender, packet)
        match rng.random():
            case chance if chance < 0.1:
                if self._late:
                    self._answer(*self._late.pop(rng.randrange(len(self._late))))
            case chance if chance < 0.101 and self._who:
                packet = self.inventor.body(rng.choice(list(BODIES)))
                packet.id = rng.choice((0, packet.id))
                self._send(rng.choice(list(self._who)), packet, "unasked")
            case chance if chance < 0.3:
                self._write_rings()
            case chance if chance < 0.4:
                begin, end = rng.choice(((0, SIZE), (_BUFFERS - RAM_BASE, SIZE)))
                self._flags[rng.randrange(begin, end) // segment.PAGE] = 0

    def clear_rings(self) -> None:
        """As a driver does before it says where they are."""
        begin = areas(_QUEUES - 1)[0] - RAM_BASE
        self._ram[begin:] = bytes(SIZE - begin)

    def close(self) -> None:
        self._router.close(0)

    def _answer(self, to: bytes, packet: Packet) -> None:
        rng, kind = self.inventor.random, packet.WhichOneof("body")
        body = wire.body_of(packet)
        right = None if body is None else self._right(body)
        if kind is None or right is None:
            return
        answer = wire.make(right, packet.id)
        if rng.random() < (_SENSE_AT_FIRST if kind in _AT_FIRST else _SENSE):
            self._send(to, answer)
            return
        how = rng.choices(tuple(_NONSENSE), tuple(_NONSENSE.values()))[0]
        what = f"{kind}: {how}"
        match how:
            case "late":
                if len(self._late) < _LATER:
                    self._late.append((to, packet))
                    self.sent[what] += 1
            case "never" if kind not in _AT_FIRST:
                self.sent[what] += 1
            case "twice":
                for _ in range(2):
                    self._send(to, answer, what)
            case "spoilt":
                self.inventor.spoil(getattr(answer, str(answer.WhichOneof("body"))))
                self._send(to, answer, what)
            case "no packet":
                with suppress(zmq.Again):
                    self._router.send_multipart([to, rng.randbytes(rng.choice((0, 1, 50)))], zmq.NOBLOCK)
                    self.sent[what] += 1
            case _:
                other = self.inventor.body(rng.choice(("error", "done", str(answer.WhichOneof("body")), *BODIES)))
                other.id = packet.id
                self._send(to, other, what)

    def _right(self, asked: Message) -> Message | None:
        """What memory would say; without having looked whether the request is right."""
        rng = self.inventor.random
        match asked:
            case common_pb2.Hello():
                return common_pb2.Welcome(major=1, name="memory", kind="memory", epoch=1)
            case memory_pb2.Attach():
                grant = memory_pb2.Grant(base=RAM_BASE, size=SIZE, writable=True)
                return memory_pb2.Attached(segments=[self._segment] if rng.random() < 0.5 else [], grants=[grant])
            case memory_pb2.MapRequest():
                return memory_pb2.AddressMap(segments=[self._segment])
            case memory_pb2.DmaRead():
                at = asked.address - RAM_BASE
                return memory_pb2.DmaDone(data=bytes(self._ram[at : at + asked.size]) if at >= 0 else b"")
            case memory_pb2.DmaWrite():
                at = asked.address - RAM_BASE
                if 0 <= at <= SIZE - len(asked.data):
                    self._ram[at : at + len(asked.data)] = asked.data
                return memory_pb2.DmaDone()
            case memory_pb2.NeedPages():
                for address in asked.addresses if rng.random() < 0.9 else ():
                    if RAM_BASE <= address < RAM_BASE + SIZE:
                        self._flags[(address - RAM_BASE) // segment.PAGE] = 1
        return common_pb2.Done()

    def _write_rings(self) -> None:
        """Descriptors of every queue, and that there are more: see `Hart`."""
        rng = self.inventor.random
        index = rng.randrange(_QUEUES)
        table = b"".join(self._descriptor(number) for number in range(_ENTRIES))
        descriptors, driver, device = (place - RAM_BASE for place in areas(index))
        self._ram[descriptors : descriptors + len(table)] = table
        used = int.from_bytes(self._ram[device + 2 : device + 4], "little")
        ahead = used + rng.choice((0, 1, 1, 2, 2, 5, _ENTRIES + 1 if rng.random() < 0.1 else 1))
        heads = [rng.choice((0, 4, 8, 12)) if rng.random() < 0.98 else rng.getrandbits(16) for _ in range(_ENTRIES)]
        made = struct.pack(f"<HH{_ENTRIES}H", rng.randrange(2), ahead & 0xFFFF, *heads)
        self._ram[driver : driver + len(made)] = made

    def _descriptor(self, number: int) -> bytes:
        """Four make a request: its head, data for the device and from it, a status. Now and then one is nonsense."""
        rng = self.inventor.random
        if rng.random() < 0.02:
            places = (0, 1, RAM_BASE, _BUFFERS, RAM_BASE + SIZE - 1, RAM_BASE + SIZE, (1 << 64) - 1)
            lengths = (0, 1, 12, 512, SIZE, (1 << 32) - 1)
            return struct.pack(
                "<QIHH", rng.choice(places), rng.choice(lengths), rng.randrange(8), rng.randrange(_ENTRIES + 1)
            )
        place, last = number % 4, number % 4 == 3
        if place == 0:
            head = rng.choice((struct.pack("<IIQ", rng.choice((0, 1, 4, 8, 11)), 0, rng.randrange(64)), _VERSION))
            self._ram[_BUFFERS - RAM_BASE + number * 0x1000 :][: len(head)] = head
            length = len(head)
        else:
            length = 1 if last else rng.choice((1, 12, 512, 4096, 8000))
        flags = (0 if last else 1) | (2 if place >= rng.choice((1, 2)) else 0)
        return struct.pack("<QIHH", _BUFFERS + number * 0x1000, length, flags, number + 1)

    def _send(self, to: bytes, packet: Packet, what: str = "answers") -> None:
        frame = packet.SerializeToString()
        if len(frame) > wire.MAX_PACKET_BYTES:
            return
        with suppress(zmq.Again):
            self._router.send_multipart([to, frame], zmq.NOBLOCK)
            self.sent[what] += 1


def _paths(machine: Path) -> tuple[str, ...]:
    """Files that are as they should be, short, long, empty, none, and those that have whoever opens them wait."""
    for name, size in (("short", 4096), ("odd", 4097), ("empty", 0), ("byte", 1)):
        (machine / name).write_bytes(bytes(size))
    os.mkfifo(machine / "fifo")
    names = ("ram.seg", "ram.flags", "short", "odd", "empty", "byte", "fifo", "missing", "")
    return (*(f"{machine}/{name}" for name in names), "", "\0", "/dev/zero", "/dev/null", "x" * 4096, "x" * 4097)


def areas(index: int) -> tuple[int, int, int]:
    """Where the descriptors and the two rings of a queue are."""
    base = RAM_BASE + SIZE - (index + 1) * _QUEUE_BYTES
    return base, base + 0x1000, base + 0x2000


class Hart:
    """Drives the device at `path` as Linux drives virtio, with nonsense between. Without an answer it dials again."""

    NUMBER = 7

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: Path, seed: int, memory: Memory) -> None:
        self.inventor = Inventor(seed)
        self._memory = memory
        self.sent: Counter[str] = Counter()
        self._context, self._path = context, path
        self._socket: zmq.Socket[bytes] | None = None
        self._epoch = self._sequence = 0
        self._waits = 0  # steps, for an answer
        self._plan: list[tuple[int, int]] = []
        self._looks = False  # at Status

    def step(self) -> None:
        if self._socket is None or self._waits > 60:
            self._dial()
        assert self._socket is not None
        self._waits += not self._socket.poll(1)
        with suppress(zmq.Again, DecodeError):
            while True:
                packet = Packet.FromString(self._socket.recv(zmq.NOBLOCK))
                if packet.WhichOneof("body") == "welcome":
                    self._epoch, self._sequence = packet.welcome.epoch, packet.welcome.done + 1
                elif packet.id != self._sequence:
                    continue
                elif packet.WhichOneof("body") == "batch_done":
                    self._sequence += 1
                    value = packet.batch_done.value
                    live = value & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
                    if self._looks and (not live or self.inventor.random.random() < 0.1):
                        self._plan = self._set_up()
                else:
                    self._dial()
                    return
                self._access()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close(0)

    def _dial(self) -> None:
        self.close()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(wire.endpoint(self._path))
        said = wire.hello(common_pb2.ROLE_HART, "cpu", hart=self.NUMBER)
        self._socket.send(wire.make(said, 1 << 63).SerializeToString())
        self._waits = 0

    def _access(self) -> None:
        assert self._socket is not None
        rng = self.inventor.random
        self._looks = not self._plan and rng.random() < 0.1
        if self._looks:
            access = bus_pb2.Access(offset=Offset.STATUS, size=4)
        elif self._plan:
            offset, value = self._plan.pop(0)
            access = bus_pb2.Access(offset=offset, size=4, write=True, value=value)
        elif rng.random() < 0.6:
            access = bus_pb2.Access(offset=Offset.QUEUE_NOTIFY, size=4, write=True, value=rng.randrange(_QUEUES))
        else:
            size = rng.choice((1, 2, 4, 4, 8))
            offset, write = rng.randrange(0x180) // size * size, rng.random() < 0.3
            access = bus_pb2.Access(offset=offset, size=size, write=write, value=rng.choice((0, 1, 15, 1 << 31)))
        batch = bus_pb2.AccessBatch(epoch=self._epoch, sequence=self._sequence, accesses=[access])
        with suppress(zmq.Again):
            self._socket.send(wire.make(batch, self._sequence).SerializeToString(), zmq.NOBLOCK)
            self.sent["access"] += 1
        self._waits = 0

    def _set_up(self) -> list[tuple[int, int]]:
        self._memory.clear_rings()
        plan = [(Offset.STATUS, value) for value in (0, 1, 3)]
        for half in (0, 1):
            features = self.inventor.random.choice((0, 1 << 28, 1 << 29, 3 << 28)) if not half else 1
            plan += [(Offset.DRIVER_FEATURES_SEL, half), (Offset.DRIVER_FEATURES, features)]
        plan.append((Offset.STATUS, 11))
        names = (Offset.QUEUE_DESC_LOW, Offset.QUEUE_DRIVER_LOW, Offset.QUEUE_DEVICE_LOW)
        for index in range(_QUEUES):
            plan += [(Offset.QUEUE_SEL, index), (Offset.QUEUE_NUM, _ENTRIES)]
            for offset, address in zip(names, areas(index), strict=True):
                plan += [(offset, address & 0xFFFF_FFFF), (offset + 4, address >> 32)]
            plan.append((Offset.QUEUE_READY, 1))
        return [*plan, (Offset.STATUS, 15)]
