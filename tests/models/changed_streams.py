"""Migration streams changed at random: in their bytes, and in their records and messages behind right checksums."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from vmesh.migration import records
from vmesh.v1 import migration_pb2 as messages

_HEADER = struct.Struct("<B3xIQ")

MESSAGES: dict[int, type[Message]] = {
    messages.RECORD_HEADER: messages.StreamHeader,
    messages.RECORD_CONFIGURATION: messages.Configuration,
    messages.RECORD_SECTION_START: messages.Section,
    messages.RECORD_SECTION_PART: messages.SectionPart,
    messages.RECORD_SECTION_END: messages.SectionPart,
    messages.RECORD_SECTION_FULL: messages.Section,
    messages.RECORD_COMMAND: messages.StreamCommand,
    messages.RECORD_DESCRIPTION: messages.StreamDescription,
}


def split(stream: bytes) -> list[tuple[int, bytes]]:
    """Kind and payload of each record behind the magic."""
    found, at = [], len(records.MAGIC)
    while at < len(stream):
        kind, length, _ = _HEADER.unpack_from(stream, at)
        at += _HEADER.size
        found.append((kind, stream[at : at + length]))
        at += length
    return found


def join(parts: Sequence[tuple[int, bytes]]) -> bytes:
    """A stream of these records, with right numbers and checksums, whatever they are."""
    made = [records.MAGIC]
    for number, (kind, payload) in enumerate(parts):
        head = _HEADER.pack(kind, len(payload), 0)[:8]
        made += [head, records.checksum(number, head, (payload,)).to_bytes(8, "little"), payload]
    return b"".join(made)


def change_bytes(stream: bytes, chance: random.Random) -> bytes:
    """Damage: bits, pieces that are other, gone, twice, or in between; an end that comes too early."""
    data = bytearray(stream)
    for _ in range(chance.choice((1, 1, 2, 10))):
        if not data:
            break
        place = chance.randrange(len(data)) if chance.random() < 0.5 else chance.randrange(min(len(data), 2000))
        size = chance.choice((1, 4, 8, 16, 300, 5000))
        match chance.randrange(6):
            case 0 | 1:
                data[place] ^= 1 << chance.randrange(8)
            case 2:
                data[place : place + size] = chance.randbytes(min(size, len(data) - place))
            case 3:
                del data[place : place + size]
            case 4:
                data[place:place] = data[place : place + size]
            case _:
                del data[max(place, 1) :]
    return bytes(data)


def change_records(stream: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """Records in another order, of another kind, missing, twice, from another stream, with other messages in them; with
    checksums that are right, but for a length that is a lie at the end."""
    parts = split(stream)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        # Those that are not pages are few, and say most.
        words = [place for place, (kind, _) in enumerate(parts) if kind != messages.RECORD_PAGES]
        place = chance.choice(words) if words and chance.random() < 0.7 else chance.randrange(len(parts))
        kind, payload = parts[place]
        match chance.randrange(12):
            case 0:
                del parts[place]
            case 1:
                parts.insert(chance.randrange(len(parts) + 1), parts[place])
            case 2:
                other = chance.randrange(len(parts))
                parts[place], parts[other] = parts[other], parts[place]
            case 3:
                parts[place] = (chance.choice((*records.LIMITS, 0, 77)), payload)
            case 4:
                parts[place] = (kind, payload[: chance.randrange(len(payload) + 1)])
            case 5:
                parts[place] = (kind, chance.randbytes(chance.choice((0, 1, 16, 4000))))
            case 6:
                taken = split(chance.choice(others))
                parts.insert(place, chance.choice(taken))
            case 7:
                chance.shuffle(parts)
            case _:
                parts[place] = (kind, _change_payload(kind, payload, chance))
        if not parts:
            break
    made = join(parts)
    if chance.random() < 0.05:
        made += _HEADER.pack(chance.choice((*records.LIMITS,)), chance.choice((1, 1 << 20, (1 << 32) - 1)), 0)
    return made


def _change_payload(kind: int, payload: bytes, chance: random.Random) -> bytes:
    if kind == messages.RECORD_PAGES and len(payload) >= 4:
        (length,) = struct.unpack_from("<I", payload)
        head, rest = payload[4 : 4 + length], payload[4 + length :]
        if chance.random() < 0.3 and rest:
            rest = change_bytes(rest, chance)
        else:
            head = _change_message(messages.PageRuns, head, chance)
        length = chance.choice((len(head), len(head), len(head), 0, (1 << 32) - 1))
        return (struct.pack("<I", length) + head + rest)[: records.LIMITS[kind]]
    if kind in MESSAGES:
        return _change_message(MESSAGES[kind], payload, chance)
    return change_bytes(payload, chance) if payload else b""


def _change_message(kind: type[Message], data: bytes, chance: random.Random) -> bytes:
    message = kind()
    try:
        message.MergeFromString(data)
    except DecodeError:
        return data
    with suppress(ValueError):  # a field that does not take it
        _change_field(message, chance)
    return message.SerializeToString()


_NUMBERS = (
    0,
    1,
    2,
    15,
    16,
    767,
    768,
    769,
    4096,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 63,
    (1 << 64) - 1,
)


def _change_field(message: Any, chance: random.Random) -> None:
    """One field of a message, or of one in it, becomes another."""
    described = chance.choice(message.DESCRIPTOR.fields)
    if message.DESCRIPTOR.full_name.endswith("StreamCommand") and (set_ := message.WhichOneof("command")):
        described = message.DESCRIPTOR.fields_by_name[set_] if chance.random() < 0.8 else described
    value = getattr(message, described.name)
    repeated = described.is_repeated
    if described.type == FieldDescriptor.TYPE_MESSAGE:
        if described.message_type.GetOptions().map_entry:
            key, content = described.message_type.fields
            value[_value(key.type, chance)] = _value(content.type, chance)
        elif not repeated:
            value.SetInParent()
            if value.DESCRIPTOR.fields:
                _change_field(value, chance)
        elif not value or chance.random() < 0.2:
            value.add()
        elif chance.random() < 0.3:
            del value[chance.randrange(len(value))]
        else:
            _change_field(chance.choice(value), chance)
        return
    if repeated:
        place = chance.randrange(len(value) + 1)
        if place == len(value) or chance.random() < 0.2:
            value.extend([_value(described.type, chance)] * chance.choice((1, 1, 2000)))
        elif chance.random() < 0.3:
            del value[place]
        else:
            value[place] = _value(described.type, chance)
        return
    setattr(message, described.name, _value(described.type, chance))


def _value(kind: int, chance: random.Random) -> Any:
    if kind == FieldDescriptor.TYPE_STRING:
        return chance.choice(("", "cpu", "rtc", "virt", "x" * 5000, "\0"))
    if kind == FieldDescriptor.TYPE_BYTES:
        return chance.randbytes(chance.choice((0, 1, 16, 3000, 100_000)))
    if kind == FieldDescriptor.TYPE_BOOL:
        return chance.random() < 0.5
    number = chance.choice(_NUMBERS)
    return number & 0x7FFFFFFF if kind == FieldDescriptor.TYPE_ENUM else number & 0xFFFFFFFF if (
        kind == FieldDescriptor.TYPE_UINT32
    ) else number  # fmt: skip
