"""Records as Python sees them: the same bytes as native code, through ctypes."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from .lang import ArrayType, IntType

_SCALARS: dict[tuple[int, bool], Any] = {
    (8, False): ctypes.c_uint8, (16, False): ctypes.c_uint16, (32, False): ctypes.c_uint32, (64, False):
    ctypes.c_uint64,
    (8, True): ctypes.c_int8, (16, True): ctypes.c_int16, (32, True): ctypes.c_int32, (64, True): ctypes.c_int64,
}  # fmt: skip


@cache
def structure(record: Any) -> Any:
    """A ctypes.Structure with the layout of a record; the offsets are checked."""
    made = type(
        record.__name__, (ctypes.Structure,), {"_fields_": [(n, _ctype(t)) for n, (_, t) in record.fields.items()]}
    )
    for name, (offset, _) in record.fields.items():
        assert getattr(made, name).offset == offset, name
    assert ctypes.sizeof(made) == record.size
    return made


def _ctype(type_: Any) -> Any:
    if isinstance(type_, ArrayType):
        return _ctype(type_.element) * type_.count
    if isinstance(type_, IntType):
        return _SCALARS[type_.bits, type_.signed]
    return structure(type_)


def view(record: Any, memory: Any, offset: int = 0) -> Any:
    """The record at ``offset`` in a writable buffer; fields are attributes."""
    return structure(record).from_buffer(memory, offset)
