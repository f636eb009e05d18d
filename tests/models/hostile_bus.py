"""Random messages for a service, of every type that a packet can have, from peers that remember what they were told.

`Talker` plays whoever dials a service: device, hart, irqchip, migration, cache, monitor. `Device` plays a device in
front of the cpu and of memory; tests/models/hostile_memory.py has memory, before those who dial it. Values are drawn
from what was heard, from the limits of the fields and from around them. One seed gives the same choices again; when the
answers come is not up to it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from vmesh import wire
from vmesh.v1 import bus_pb2, common_pb2, lifecycle_pb2, limits_pb2, memory_pb2
from vmesh.v1.packet_pb2 import Packet

RAM_BASE = 0x8000_0000
BODIES: dict[str, Descriptor] = {
    field.name: field.message_type
    for field in Packet.DESCRIPTOR.oneofs_by_name["body"].fields
    if field.message_type is not None
}
ROLES = tuple(common_pb2.Role.values())
_LIMIT = limits_pb2.limit
_WIDTH = {
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_ENUM: (0, 9),
    FieldDescriptor.CPPTYPE_BOOL: (0, 1),
}
_ROOM = 2000
# The monitor's orders that end a service, or let go of what it has: obeyed, as they should be.
_ORDERS = frozenset({"shutdown", "hand_over"})


class Inventor:
    """Makes messages; `heard` has numbers by the names of fields, from what was received. `texts` are all that fields
    of these names may say: where a service is to look for files, for instance."""

    def __init__(self, seed: int, texts: Mapping[str, Sequence[str]] | None = None) -> None:
        self.random = random.Random(seed)
        self.heard: dict[str, list[int]] = {}
        self._texts = texts or {}
        self._left = 0  # of the fields and KiB that this message may still have: rows of rows would take seconds

    def listen(self, message: Message) -> None:
        """Remember the numbers in a message."""
        for field, value in message.ListFields():
            if field.is_repeated:
                continue
            if field.message_type is not None:
                self.listen(value)
            elif isinstance(value, int):
                self.heard.setdefault(field.name, [0]).append(value)
                del self.heard[field.name][:-8]

    def body(self, name: str) -> Packet:
        """A packet with this body."""
        packet = Packet(id=self.random.choice((0, 1, self.random.getrandbits(64))))
        body = getattr(packet, name)
        body.SetInParent()
        self._left = _ROOM
        self._fill(body, depth=0)
        return packet

    def spoil(self, message: Any) -> None:
        """Give one field of it, at any depth, another value."""
        within = [value for _, value in message.ListFields() if isinstance(value, Message)]
        for field, value in message.ListFields():
            if field.message_type is not None and field.is_repeated and not field.message_type.GetOptions().map_entry:
                within += value
        fields = message.DESCRIPTOR.fields
        if within and (not fields or self.random.random() < 0.7):
            self.spoil(self.random.choice(within))
        elif fields:
            field = self.random.choice(fields)
            message.ClearField(field.name)
            self._left = _ROOM
            self._fill_field(message, field, depth=0)

    def _fill(self, message: Any, depth: int) -> None:
        self._left -= len(message.DESCRIPTOR.fields)
        for field in message.DESCRIPTOR.fields:
            if self.random.random() >= 0.25:
                self._fill_field(message, field, depth)

    def _fill_field(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        if field.is_repeated:
            self._fill_row(message, field, depth)
        elif field.message_type is None:
            setattr(message, field.name, self._value(field))
        elif depth < 4:
            getattr(message, field.name).SetInParent()
            self._fill(getattr(message, field.name), depth + 1)

    def _fill_row(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        most = min(field.GetOptions().Extensions[_LIMIT].items or 1 << 16, 1 << 16)  # what no packet has room for
        count = self.random.choice((0, 1, 1, 2, 3, 17, min(most, 300)))
        if self.random.random() < (0.05 if most <= 5000 else 0.003):  # tens of thousands take their time
            count = self.random.choice((most - 1, most, most + 1))
        row = getattr(message, field.name)
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            for _ in range(min(count, 5000)):
                key, value = (self._value(entry.fields_by_name[each]) for each in ("key", "value"))
                row[key] = value
        elif entry is None:
            few = [self._value(field) for _ in range(min(count, 300))]
            row.extend((few * (count // 300 + 1))[:count])
        elif depth < 4:
            for number in range(count):
                made = row.add()
                if number < 40 and self._left > 0:
                    self._fill(made, depth + 1)

    def _value(self, field: FieldDescriptor) -> Any:
        limit = field.GetOptions().Extensions[_LIMIT]
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            if field.name in self._texts:
                return self.random.choice(self._texts[field.name])
            longest = limit.bytes or 1 << 16
            lengths = (0, 1, 5, longest - 1, longest, longest + 1)
            long = self.random.random() < (0.3 if longest < 1 << 16 else 0.03)
            length = self.random.choice(lengths) if long and self._left > 0 else 5
            self._left -= length >> 10
            if field.type == FieldDescriptor.TYPE_BYTES:
                return (self.random.randbytes(min(length, 64)) * (length // 64 + 1))[:length]
            return self.random.choice(("h0", "uart0", "cpu", "../x", "\0", "é\n\x1b[2J", "x" * length))
        low, high = _WIDTH.get(field.cpp_type, (0, 1))
        if self.random.random() < 0.4 and field.name in self.heard:
            known = self.random.choice(self.heard[field.name])
            return max(low, min(high, known + self.random.choice((0, 0, 0, 1, -1, 1000))))
        near = (RAM_BASE, RAM_BASE + 4095, RAM_BASE + (16 << 20), 0x400_0000, 0x1000_0000)
        ends: tuple[int, ...] = (0, 1, 2, 3, 4, 8, 63, 64, 4096, low, high, high - 1, high >> 1, *near)
        if limit.max:
            ends += (limit.max - 1, limit.max, limit.max + 1)
        chosen = self.random.choice(ends) if self.random.random() < 0.9 else self.random.randint(low, high)
        return max(low, min(high, chosen))


def _texts(machine: Path) -> dict[str, tuple[str, ...]]:
    """Where a migration may go to, come from, or be kept: nothing outside of the machine's directory."""
    uris = (f"unix:{machine}/m", f"unix:{machine}", "tcp:127.0.0.1:0", "tcp:[::1]:1", "handover:x", "unix:", "\0", "")
    paths = (
        f"{machine}/snapshot",
        f"{machine}/missing/snapshot",
        str(machine),
        f"{machine}/\0",
        f"{machine}/" + "x" * 300,
    )
    return {
        **dict.fromkeys(("outgoing", "incoming", "recover", "resume"), uris),
        **dict.fromkeys(("save", "load"), paths),
    }


class Talker:
    """Dials the service at `path` again and again, as anybody. `sent` counts what it has sent, by type."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: Path, seed: int) -> None:
        self._context, self._path, self._machine = context, path, path.parent.name
        self.inventor = Inventor(seed, _texts(path.parent))
        self.sent: Counter[str] = Counter()
        self._open: list[tuple[zmq.Socket[bytes], int]] = []  # and the role that it has said

    def step(self) -> None:
        """Do something."""
        rng = self.inventor.random
        if not self._open or (len(self._open) < 8 and rng.random() < 0.1):
            self._dial()
        place = rng.randrange(len(self._open))
        socket, role = self._open[place]
        with suppress(zmq.Again):
            match rng.random():
                case chance if chance < 0.02:
                    socket.send(rng.randbytes(rng.choice((0, 1, 50, 5000))), zmq.NOBLOCK)
                    self.sent["no packet"] += 1
                case chance if chance < 0.03:
                    socket.send_multipart([b"x", b"y"], zmq.NOBLOCK)
                    self.sent["several frames"] += 1
                case chance if chance < 0.05:
                    socket.close(0)
                    del self._open[place]
                    self.sent["closed"] += 1
                    return
                case _:
                    self._say(socket, role)
        self._hear(socket)

    def close(self) -> None:
        for socket, _ in self._open:
            socket.close(0)
        self._open.clear()

    def _dial(self) -> None:
        rng = self.inventor.random
        socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.SNDHWM, 1000)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(wire.endpoint(self._path))
        role = rng.choice(ROLES)
        name = rng.choice(("h0", "uart0", "cpu", "monitor", "x" * 64, "x" * 65, ""))
        said = wire.hello(role, name, machine=rng.choice(("", self._machine)), hart=rng.choice((0, 0, 1, 4095, 4096)))
        socket.send(wire.make(said, 1).SerializeToString())
        self._open.append((socket, role))
        self.sent["hello"] += 1

    def _say(self, socket: zmq.Socket[bytes], role: int) -> None:
        allowed = [name for name, roles in wire.ALLOWED.items() if role in roles] if self._mostly() else list(BODIES)
        name = self.inventor.random.choice(allowed or list(BODIES))
        if name in _ORDERS:
            return
        frame = self.inventor.body(name).SerializeToString()
        if len(frame) <= wire.MAX_PACKET_BYTES:
            socket.send(frame, zmq.NOBLOCK)
            self.sent[name] += 1

    def _mostly(self) -> bool:
        return self.inventor.random.random() < 0.85

    def _hear(self, socket: zmq.Socket[bytes]) -> None:
        with suppress(zmq.Again, DecodeError):
            for _ in range(self.inventor.random.choice((0, 1, 4, 64))):
                packet = Packet.FromString(socket.recv(zmq.NOBLOCK))
                self.inventor.listen(packet)


class Device:
    """A device `h0` that memory has on its map: the cpu dials it, and is told anything. Call `step` often."""

    BASE = 0x400_0000

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], machine: Path, seed: int, epoch: int = 1) -> None:
        self.inventor = Inventor(seed)
        self.sent: Counter[str] = Counter()
        self._epoch = epoch
        self._who: dict[bytes, int] = {}
        self.router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        self.router.setsockopt(zmq.SNDHWM, 1000)
        path = machine / "h0.sock"
        self.router.bind(wire.endpoint(path))
        shadow = bus_pb2.Register(offset=8, size=4, read=bus_pb2.READ_SHADOW, write=bus_pb2.WRITE_POSTED)
        latch = bus_pb2.Register(offset=16, size=4, read=bus_pb2.READ_LATCH)
        region = bus_pb2.Region(name="r", base=self.BASE, size=4096, access_sizes=15, registers=[shadow, latch])
        self.description = bus_pb2.Description(
            name="h0", kind="hostile", state_type="x.State", state_version=1, epoch=epoch, endpoint=wire.endpoint(path),
            regions=[region], lines=[bus_pb2.Line(name="l", irq=20)], dma=True,
        )  # fmt: skip
        said = wire.hello(common_pb2.ROLE_DEVICE, "h0", machine=machine.name)
        self.memory = wire.Peer(context, wire.endpoint(machine / "memory.sock"), said)
        self.memory.greet(60.0)
        self.memory.request(memory_pb2.Attach(description=self.description), 60.0)

    def step(self, *, polite: bool = False) -> None:
        """Answer one question, rightly (always, if it is `polite`) or not, or say something unasked."""
        rng = self.inventor.random
        if self.router.poll(1):
            sender, frame = self.router.recv_multipart()
            packet = Packet.FromString(frame)
            self.inventor.listen(packet)
            self._answer(sender, packet, 1.0 if polite else 0.7)
        elif self._who and not polite:
            self._send(rng.choice(list(self._who)), rng.choice(("device_update", "batch_done", *BODIES)))

    def close(self) -> None:
        self.router.close(0)
        self.memory.abandon()

    def _answer(self, sender: bytes, packet: Packet, right_share: float) -> None:
        rng = self.inventor.random
        kind = packet.WhichOneof("body")
        right: Message | None = None
        if kind == "hello":
            self._who[sender] = packet.hello.role
            right = common_pb2.Welcome(major=1, name="h0", kind="hostile", epoch=self._epoch, window=64)
        elif kind == "access_batch":
            done = packet.access_batch.sequence + len(packet.access_batch.accesses) - 1
            right = bus_pb2.BatchDone(epoch=self._epoch, done=done, value=rng.getrandbits(32), credits=64)
        elif kind == "health":
            right = lifecycle_pb2.HealthReport(phase=lifecycle_pb2.SERVICE_RUNNING, name="h0", epoch=self._epoch)
        elif kind == "drain":
            right = lifecycle_pb2.Drained()
        elif kind == "resume":
            right = common_pb2.Done()
        elif right_share == 1.0:
            return  # what needs no answer, as `processes`, or ends it
        if right is not None and rng.random() < right_share:
            with suppress(zmq.Again):
                self.router.send_multipart([sender, wire.make(right, packet.id).SerializeToString()], zmq.NOBLOCK)
        elif right is not None and rng.random() < 0.5:
            self.inventor.spoil(right)
            with suppress(zmq.Again):
                self.router.send_multipart([sender, wire.make(right, packet.id).SerializeToString()], zmq.NOBLOCK)
                self.sent[f"{type(right).DESCRIPTOR.name} spoilt"] += 1
        elif kind is not None:
            answer = {"hello": "welcome", "access_batch": "batch_done"}.get(kind, "done")
            self._send(sender, answer if rng.random() < 0.7 else rng.choice(list(BODIES)), packet.id)

    def _send(self, to: bytes, name: str, packet_id: int | None = None) -> None:
        packet = self.inventor.body(name)
        if name == "notice" and packet.notice.WhichOneof("event") in ("power_off", "reset_request"):
            packet.notice.ClearField("event")  # a device may say that: the board's own does
        if packet_id is not None:
            packet.id = packet_id
        with suppress(zmq.Again):
            self.router.send_multipart([to, packet.SerializeToString()], zmq.NOBLOCK)
            self.sent[name] += 1
