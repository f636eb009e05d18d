"""What a message may say, by the options of its fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from vmesh import limits
from vmesh.v1 import bus_pb2, common_pb2, cpu_pb2, lifecycle_pb2, limits_pb2, memory_pb2
from vmesh.v1.packet_pb2 import Packet

BODIES: list[Descriptor] = [
    field.message_type for field in Packet.DESCRIPTOR.oneofs_by_name["body"].fields if field.message_type is not None
]


def everywhere() -> Iterator[FieldDescriptor]:
    """Every field that a packet can have."""
    seen: set[str] = set()
    todo = list(BODIES)
    while todo:
        descriptor = todo.pop()
        if descriptor.full_name not in seen:
            seen.add(descriptor.full_name)
            yield from descriptor.fields
            todo += [field.message_type for field in descriptor.fields if field.message_type is not None]


def limit(field: FieldDescriptor) -> Any:
    return field.GetOptions().Extensions[limits_pb2.limit]


@pytest.mark.parametrize("field", [f for f in everywhere() if limit(f).ListFields()], ids=lambda field: field.full_name)
def test_each_limit_is_the_largest_that_is_taken(field: FieldDescriptor) -> None:
    assert field.containing_type is not None
    made = GetMessageClass(field.containing_type)
    found = limit(field)
    if found.items > 1 << 16 or found.bytes > 1 << 20:
        return  # more than a packet has
    for more in (0, 1):
        message: Message = made()
        if found.items:
            items = getattr(message, field.name)
            if field.message_type is None:
                text = field.type == FieldDescriptor.TYPE_STRING
                items.extend(["" if text else 0] * (found.items + more))
            elif field.message_type.GetOptions().map_entry:
                items.update({str(n): 0 for n in range(found.items + more)})
            else:
                for _ in range(found.items + more):
                    items.add()
        elif found.bytes:
            value = "x" * (found.bytes + more)
            setattr(message, field.name, value if field.type == FieldDescriptor.TYPE_STRING else value.encode())
        else:
            try:
                setattr(message, field.name, found.max + more)
            except ValueError:
                continue  # no number of this type is larger
        wrong = limits.broken(message)
        assert wrong.startswith(field.name) if more else not wrong, wrong


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        (common_pb2.Welcome(done=(1 << 64) - 1), "done: expected at most 9223372036854775807, got 184"),
        (bus_pb2.DeviceUpdate(epoch=(1 << 64) - 1), "epoch: expected at most 4294967295"),
        (bus_pb2.DeviceUpdate(shadows=[bus_pb2.ShadowValue()] * 50_000), "shadows: expected at most 4096 items"),
        (bus_pb2.BatchDone(update=bus_pb2.DeviceUpdate(sequence=1 << 63)), "update.sequence: expected"),
        (bus_pb2.Description(regions=[bus_pb2.Region(registers=[bus_pb2.Register(count=1 << 20)])]),
         "regions.registers.count: expected at most 65536, got 1048576"),
        (memory_pb2.Attach(description=bus_pb2.Description(lines=[bus_pb2.Line()] * 65)), "description.lines: "),
        (lifecycle_pb2.HealthReport(counters={str(n): 1 for n in range(2000)}), "counters: expected at most 1024"),
        (lifecycle_pb2.Drain(updates={"x" * 70_000: 1}), "updates: expected at most 65536 bytes"),
        (common_pb2.Notice(text="é" * 40_000), "text: expected at most 65536 bytes, got 80000"),
        (cpu_pb2.SetBreakpoints(addresses=[0] * 70_000), "addresses: expected at most 65536 items"),
        (cpu_pb2.ReadRegisters(names=["x" * 70_000]), "names: expected at most 65536 bytes"),
    ],
)  # fmt: skip
def test_what_is_outside_is_named(message: Message, wrong: str) -> None:
    assert limits.broken(message).startswith(wrong)


@pytest.mark.parametrize("descriptor", BODIES, ids=lambda descriptor: descriptor.name)
def test_an_empty_message_keeps_all_limits(descriptor: Descriptor) -> None:
    assert limits.broken(GetMessageClass(descriptor)()) == ""


def test_no_text_row_or_list_of_a_packet_is_without_a_limit() -> None:
    for field in everywhere():
        if field.is_repeated or field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            assert limits._field(field) is not None, field.full_name
