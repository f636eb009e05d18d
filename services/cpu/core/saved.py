"""The harts' state as a message (proto/vmesh/v1/cpu.proto: CpuState), and back. Nothing of the host is in it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from vmesh import errors
from vmesh.v1.cpu_pb2 import CpuState, HartRecord

from ..isa.registers import Register, registers_of
from .harts import Harts, SpareHart
from .timers import TICK

_ANY, _BOOLEAN = range(1 << 64), range(2)
#: What is saved of a hart beside its registers, by the names in its record, and the legal values. ``pc`` is a multiple
#: of what the ISA aligns it to, too. ``retired`` counts up from 0, and 2**62 instructions take centuries.
OWN_VALUES: Mapping[str, Container[int]] = {"pc": _ANY, "waiting": _BOOLEAN, "retired": range(1 << 62)}
#: Guest time is kept in nanoseconds modulo 2**64.
_MOST_TIME = (1 << 64) // TICK


def saved_values(harts: Harts) -> dict[str, Container[int] | None]:
    """Names of what is saved of each hart as one value, and what is legal; None: what a write of it leaves as it is."""
    registers = _saved(harts, files=False)
    return {**OWN_VALUES, **{name: register.legal for name, register in registers}}


def _saved(harts: Harts, *, files: bool) -> Iterator[tuple[str, Register]]:
    for name, register in registers_of(harts.isa.hart).items():
        if register.saved and (register.array is not None) is files:
            yield name, register


def _length(register: Register) -> int:
    """Registers of a file: behind those with names may be one that takes what is written to none."""
    assert register.array is not None
    return len(register.names) or register.array.count


def save(harts: Harts, time_ns: int) -> CpuState:
    """The state of paused harts; ``time_ns`` is guest time."""
    state = CpuState(
        time=time_ns // TICK,
        mtime_offset=harts.machine.counter_offset,
        features=sorted(harts.features),
    )
    for hart in harts.hart:
        record = state.harts.add()
        for name in saved_values(harts):
            record.values[name] = getattr(hart, name)
        for name, register in _saved(harts, files=True):
            _put_file(record, name, getattr(hart, name)[: _length(register)])
    harts.controllers.save(state, lambda number: int(harts.hart[number].lines))
    return state


def _put_file(record: HartRecord, name: str, values: list[int]) -> None:
    """Those of RISC-V have a field of their own, as they had before there were others."""
    if name in record.DESCRIPTOR.fields_by_name:
        if isinstance(getattr(record, name), bytes):
            setattr(record, name, bytes(values))
        else:
            getattr(record, name).extend(values)
    else:
        record.files[name].values.extend(values)


def _file(record: HartRecord, name: str) -> list[int]:
    if name in record.DESCRIPTOR.fields_by_name:
        return list(getattr(record, name))
    return list(record.files[name].values) if name in record.files else []


def upgrade(harts: Harts, state: CpuState, version: int) -> None:
    """A state of an earlier version gets what it does not have, as after a reset."""
    for number, record in enumerate(state.harts):
        for name, register in _saved(harts, files=False):
            if register.since > version and name not in record.values:
                record.values[name] = register.reset_value(harts.features, number)


def check(harts: Harts, state: CpuState) -> None:
    """Raises BadState for a state that these harts cannot take, or that they could never come to by themselves."""
    if len(state.harts) != len(harts.hart):
        raise errors.BadState("state of cpu", expected=f"{len(harts.hart)} harts", got=str(len(state.harts)))
    features = sorted(harts.features)
    if list(state.features) != features:
        raise errors.BadState("state of cpu", expected=",".join(features), got=",".join(state.features)[:400])
    if state.time >= _MOST_TIME:
        raise errors.BadState("state of cpu: time", expected=f"below {_MOST_TIME} ticks", got=str(state.time))
    spare = harts.spare()
    for number, record in enumerate(state.harts):
        _check_hart(f"hart {number}", harts, spare, record)
    harts.controllers.check(state)


def load(harts: Harts, state: CpuState) -> int:
    """Takes a state that passed ``check``; gives its guest time in nanoseconds."""
    harts.machine.counter_offset = state.mtime_offset
    lines = harts.controllers.load(state)
    for hart, record, driven in zip(harts.hart, state.harts, lines, strict=True):
        for name in saved_values(harts):
            setattr(hart, name, record.values[name])
        for name, register in _saved(harts, files=True):
            getattr(hart, name)[: _length(register)] = _file(record, name)
        hart.lines = driven
        hart.timers = hart.stop_at = hart.deadline = 0
    harts.state_loaded()
    return state.time * TICK


def _check_hart(hart: str, harts: Harts, spare: SpareHart, record: HartRecord) -> None:
    values, legal = record.values, saved_values(harts)
    names = {*legal, *harts.controllers.saved_values()}
    if wrong := names ^ set(values):
        raise errors.BadState(
            f"state of {hart}", expected=f"values of {len(names)} names", got=f"not so of {min(wrong)}"
        )
    files = {name: _file(record, name) for name, _ in _saved(harts, files=True)}
    for name, register in _saved(harts, files=True):
        if len(files[name]) != _length(register):
            expected = f"{_length(register)} values"
            raise errors.BadState(f"state of {hart}: {name}", expected=expected, got=str(len(files[name])))
    if unknown := set(record.files) - set(files):
        raise errors.BadState(f"state of {hart}", expected="files of registers that it has", got=min(unknown)[:80])
    for name, allowed in legal.items():
        if allowed is not None and values[name] not in allowed:
            raise errors.BadState(f"state of {hart}: {name}", expected="a legal value", got=hex(values[name]))
    if values["pc"] % harts.instruction_alignment:
        expected = f"a multiple of {harts.instruction_alignment}"
        raise errors.BadState(f"state of {hart}: pc", expected=expected, got=hex(values["pc"]))
    written = spare.after(harts.isa.writes(values, files))
    found = [(name, values[name], getattr(written, name)) for name, allowed in legal.items() if allowed is None]
    for name, register in _saved(harts, files=True):
        if register.legal is None:
            pairs = zip(files[name], getattr(written, name), strict=True)
            found += [(f"{name}{index}", value, kept) for index, (value, kept) in enumerate(pairs)]
    for name, value, kept in found:
        if value != kept:
            raise errors.BadState(
                f"state of {hart}: {name}", expected=f"what can be written to it, such as {kept:#x}", got=hex(value)
            )
