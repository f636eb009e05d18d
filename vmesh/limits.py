"""Whether a message keeps the limits that proto/vmesh/v1/limits.proto and the options of its fields set.

For each type the checks are made once, of the descriptors: a message of a type without limits costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from vmesh.v1 import limits_pb2

ITEMS, BYTES = 1 << 16, 1 << 16  # without a limit of its own
#: By how much the number of a life may be above the one that is due: a device that is started by hand.
MOST_LIVES = 1000
#: The cause of a complaint (lifecycle.proto: Complaint.what) for which the monitor ends a device.
BROKEN = "breaks the protocol"

#: Takes a message or a field's value; what is wrong with it, or nothing.
_Check = Callable[[Any], str]


def broken(message: Message) -> str:
    """The first limit that `message` does not keep, in one line; empty if it keeps them all."""
    return _check(message.DESCRIPTOR)(message)


@cache
def _check(descriptor: Descriptor) -> _Check:
    """The check of one type. No type may be inside itself."""
    numbers = [(field.name, largest) for field in descriptor.fields if (largest := _largest(field))]
    others = [(field.name, check) for field in descriptor.fields if (check := _field(field)) is not None]

    def whole(message: Any) -> str:
        for name, largest in numbers:  # in one go, for the messages that a hart waits for
            if getattr(message, name) > largest:
                return f"{name}: expected at most {largest}, got {getattr(message, name)}"
        for name, check in others:
            if wrong := check(message):
                return f"{name}{wrong}"
        return ""

    return whole


def _limit(field: FieldDescriptor) -> limits_pb2.Limit:
    return field.GetOptions().Extensions[limits_pb2.limit]


def _largest(field: FieldDescriptor) -> int:
    """The limit of a field that is one number; 0: none."""
    return 0 if field.is_repeated else _limit(field).max


@cache
def _limited(descriptor: Descriptor) -> bool:
    """Whether a type has limits, or one of those in it."""
    return any(_largest(field) or _field(field) is not None for field in descriptor.fields)


@cache
def _field(field: FieldDescriptor) -> _Check | None:
    """What is wrong with a field that is no number: how the line goes on after its name. None: nothing can be."""
    name, limit = field.name, _limit(field)
    if not field.is_repeated:
        one = None if limit.max else _one(field)
        if one is None:
            return None
        if field.message_type is None:
            return lambda message: one(getattr(message, name))
        return lambda message: one(getattr(message, name)) if message.HasField(name) else ""
    most = limit.items or ITEMS
    entry = field.message_type
    each = _one(entry.fields_by_name["key"] if entry is not None and entry.GetOptions().map_entry else field)

    def all_of(message: Any) -> str:
        items = getattr(message, name)
        if len(items) > most:
            return f": expected at most {most} items, got {len(items)}"
        if each is not None:
            for item in items:
                if wrong := each(item):
                    return wrong
        return ""

    return all_of


def _one(field: FieldDescriptor) -> _Check | None:
    """The check of one value."""
    limit = _limit(field)
    if field.message_type is not None:
        if not _limited(field.message_type):
            return None
        inner = _check(field.message_type)
        return lambda message: f".{wrong}" if (wrong := inner(message)) else ""
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        longest = limit.bytes or BYTES

        def length(value: Any) -> str:
            # Characters are no more than bytes: a text is counted only if it may be too long.
            size = len(value) if 4 * len(value) <= longest or isinstance(value, bytes) else len(value.encode())
            return f": expected at most {longest} bytes, got {size}" if size > longest else ""

        return length
    if not limit.max:
        return None
    largest = limit.max
    return lambda number: f": expected at most {largest}, got {number}" if number > largest else ""
