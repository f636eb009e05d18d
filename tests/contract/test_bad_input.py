"""Every service: what is no packet, too early, for another version or makes no sense is refused and counted."""

from __future__ import annotations

import random

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tests.contract.cases import ALL
from tests.contract.harness import Machine
from tests.waiting import LIMIT, wait_for
from vmesh import wire
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import lifecycle_pb2 as lifecycle
from vmesh.v1.packet_pb2 import Packet

SERVICES = ["memory", "cpu", *(case.name for case in ALL)]
ROUNDS = 400
# What a peer that is believed may do: end the service, stop it.
POWERFUL = {"shutdown", "pause"}


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest, machine: Machine) -> str:
    if request.param == "cpu":
        machine.start_cpu()
    else:
        machine.start_memory()
    for case in ALL:
        if case.name == request.param:
            case.start(machine)
    name: str = request.param
    machine.monitor(name).health()
    return name


def refused(machine: Machine, service: str) -> int:
    """How much the service has refused; shows as well that it serves."""
    health = machine.monitor(service).health()
    assert health.phase == lifecycle.SERVICE_RUNNING
    return health.counters["refused"]


def answer_to_hello(machine: Machine, service: str, **changes: object) -> Packet:
    """What comes back for a good Hello with these fields changed."""
    said = wire.hello(common.ROLE_MONITOR, "test", machine=machine.path.name)
    for field, value in changes.items():
        setattr(said, field.strip("_"), value)
    raw = machine.raw(service)
    raw.send(Packet(id=9, hello=said).SerializeToString())
    answer = Packet.FromString(raw.recv())
    assert answer.id == 9
    return answer


def test_another_major_version(machine: Machine, service: str) -> None:
    answer = answer_to_hello(machine, service, major=2, minor=7)
    assert answer.refused.expected == "protocol 1.x"
    assert answer.refused.got == "protocol 2.7"
    assert service in answer.refused.reason
    assert refused(machine, service) == 1


def test_another_minor_version_is_welcome(machine: Machine, service: str) -> None:
    assert answer_to_hello(machine, service, minor=99).welcome.name == service


def test_hellos_that_are_refused(machine: Machine, service: str) -> None:
    wrong = [("role", 0), ("role", 77), ("name", ""), ("name", "a b"), ("name", "x" * 65), ("machine", "other")]
    wrong.append(("hart", 4096))
    for field, value in wrong:
        answer = answer_to_hello(machine, service, **{f"{field}_": value})
        assert answer.WhichOneof("body") == "refused", (field, value)
        assert answer.refused.expected
    assert refused(machine, service) == len(wrong)


def test_nothing_before_hello(machine: Machine, service: str) -> None:
    raw = machine.raw(service)
    raw.send(Packet(id=5, shutdown=lifecycle.Shutdown()).SerializeToString())
    answer = Packet.FromString(raw.recv())
    assert (answer.id, answer.refused.expected, answer.refused.got) == (5, "Hello first", "shutdown")
    assert refused(machine, service) == 1


def test_several_frames_and_none(machine: Machine, service: str) -> None:
    raw = machine.raw(service)
    raw.send_multipart([b"a", b"b", b"c"])
    assert Packet.FromString(raw.recv()).WhichOneof("body") == "refused"
    raw.send_multipart([b"", Packet(id=1, health=lifecycle.Health()).SerializeToString()])
    assert Packet.FromString(raw.recv()).WhichOneof("body") == "refused"
    raw.send(b"")  # a packet without a body: ignored
    assert refused(machine, service) == 2


def test_a_refusal_is_logged_once_and_then_seldom(machine: Machine, service: str) -> None:
    raw = machine.raw(service)
    for _ in range(150):
        raw.send(b"\xff\xff\xff")
        raw.recv()
    assert refused(machine, service) == 150
    lines = [line for line in (machine.path / "log").read_text().splitlines() if "unparsable" in line]
    assert len(lines) == 3


def test_random_bytes(machine: Machine, service: str) -> None:
    chance = random.Random(1)
    raw = machine.raw(service)
    for _ in range(ROUNDS):
        raw.send(chance.randbytes(chance.choice((1, 2, 3, 10, 50, 1000))))

    def answered() -> bool:  # asked again, as a stranger who does not read misses answers
        raw.send(Packet(id=77, health=lifecycle.Health()).SerializeToString())
        while raw.poll(100):
            if Packet.FromString(raw.recv()).id == 77:
                return True
        return False

    wait_for(answered, "an answer to Health")
    assert refused(machine, service) > ROUNDS // 2


def test_random_packets(machine: Machine, service: str) -> None:
    """Packets that parse and mean nothing, from peers that have said a good Hello."""
    before = 0
    for role in filter(None, common.Role.values()):
        send_random_packets(machine, service, role)
        after = refused(machine, service)
        assert after > before, common.Role.Name(role)
        before = after


def send_random_packets(machine: Machine, service: str, role: common.Role.ValueType) -> None:
    chance = random.Random(role)
    peer = machine.dial(service, role, name="fuzz")
    bodies = [field.name for field in Packet.DESCRIPTOR.oneofs_by_name["body"].fields if field.name not in POWERFUL]
    for _ in range(ROUNDS):
        packet = Packet(id=chance.choice((0, 1, 2, 1 << 63)))
        body = chance.choice(bodies)
        fill(getattr(packet, body), chance, depth=0)
        getattr(packet, body).SetInParent()
        peer.send_packet(packet)
    # All have been looked at when this one is answered, as any Hello is.
    hello = wire.make(wire.hello(role, "fuzz"), 4711)
    peer.send_packet(hello)
    while (answer := peer.receive(LIMIT)) is not None:
        if answer.id == hello.id:
            return
    pytest.fail("no answer to a Hello")


def fill(message: Message, chance: random.Random, depth: int) -> None:
    """Random values for random fields of `message`, edge values often."""
    assert isinstance(message.DESCRIPTOR, Descriptor)
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.4:
            continue
        if field.is_repeated:
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                continue
            target = getattr(message, field.name)
            for _ in range(chance.choice((0, 1, 2, 5))):
                if field.type == FieldDescriptor.TYPE_MESSAGE:
                    if depth < 3:
                        fill(target.add(), chance, depth + 1)
                else:
                    target.append(scalar(field, chance))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            if depth < 3:
                fill(getattr(message, field.name), chance, depth + 1)
        else:
            setattr(message, field.name, scalar(field, chance))


def scalar(field: FieldDescriptor, chance: random.Random) -> object:
    numbers = (0, 1, 2, 4, 8, 0x100, 0x8000_0000, (1 << 32) - 1)
    match field.type:
        case FieldDescriptor.TYPE_BOOL:
            return chance.random() < 0.5
        case FieldDescriptor.TYPE_STRING:
            return chance.choice(("", "fuzz", "uart0", "memory", "\0\x1b[2J\n", "x" * 300, "ä€😀"))
        case FieldDescriptor.TYPE_BYTES:
            return chance.randbytes(chance.choice((0, 1, 20, 5000)))
        case FieldDescriptor.TYPE_ENUM:
            return chance.choice((0, 1, 2, 3, 99))
        case FieldDescriptor.TYPE_UINT64 | FieldDescriptor.TYPE_FIXED64:
            return chance.choice((*numbers, (1 << 63), (1 << 64) - 1, chance.getrandbits(64)))
        case FieldDescriptor.TYPE_UINT32 | FieldDescriptor.TYPE_FIXED32:
            return chance.choice(numbers)
        case FieldDescriptor.TYPE_INT64 | FieldDescriptor.TYPE_SINT64:
            return chance.choice((*numbers, -1, -(1 << 63), (1 << 63) - 1))
        case FieldDescriptor.TYPE_INT32 | FieldDescriptor.TYPE_SINT32:
            return chance.choice((0, 1, -1, -(1 << 31), (1 << 31) - 1))
        case FieldDescriptor.TYPE_DOUBLE:
            return chance.choice((0.0, -1.0, 1e308, float("inf"), float("nan"), chance.random()))
    raise AssertionError(f"no random value for {field.full_name}")
