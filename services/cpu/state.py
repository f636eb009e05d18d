"""The harts' state as a message (proto/vmesh/v1/cpu.proto: CpuState), and back. Nothing of the host is in it."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from vmesh import errors
from vmesh.v1.cpu_pb2 import CpuState, HartRecord, PlicState

from .harts import Harts, SpareHart
from .isa.riscv.csr import CSRS
from .isa.riscv.csr_bits import MSIP
from .isa.riscv.features import FEATURES
from .isa.riscv.plic_layout import MAX_PRIORITY, SOURCES, WORDS
from .isa.riscv.state import MACHINE, PMP_ENTRIES, SUPERVISOR, USER

VERSION = 1
TICK_NS = 100

#: CSRs that are a hart's state, in an order in which they can be written. Legal is what a write to a hart that was just
#: reset leaves as it is (WARL): what a value may be is said once, by ``isa/riscv/csr.py``.
CSR_VALUES = (
    "fflags", "frm", "mstatus", "menvcfg", "senvcfg", "medeleg", "mideleg", "mie", "mip", "mtvec", "stvec",
    "mcounteren", "scounteren", "mscratch", "sscratch", "mepc", "sepc", "mcause", "scause", "mtval", "stval",
    "satp", "stimecmp",
)  # fmt: skip
_ANY, _BOOLEAN = range(1 << 64), range(2)
#: The other scalars, by their names in a hart's record, and their legal values. ``pc`` is a multiple of IALIGN, too.
#: ``retired`` counts up from 0, and 2**62 instructions take centuries.
OTHER_VALUES: Mapping[str, Container[int]] = {
    "pc": _ANY,
    "privilege": (USER, SUPERVISOR, MACHINE),
    "waiting": _BOOLEAN,
    "retired": range(1 << 62),
    "cycle_offset": _ANY,
    "instret_offset": _ANY,
    "mtimecmp": _ANY,
}
#: What else is in a hart's record is derived from these or from memory.
VALUES = (*OTHER_VALUES, *CSR_VALUES)
_SOFTWARE = "software_interrupt"
#: Guest time is kept in nanoseconds modulo 2**64.
_MOST_TIME = (1 << 64) // TICK_NS
_CSR_NUMBERS = {csr.name: csr.number for csr in CSRS.values()}


def features(harts: Harts) -> list[str]:
    """The names of the features that are on, sorted."""
    return sorted(name for number, name in enumerate(FEATURES) if harts.machine.features >> number & 1)


def save(harts: Harts, time_ns: int) -> CpuState:
    """The state of paused harts; ``time_ns`` is guest time."""
    state = CpuState(
        time=time_ns // TICK_NS,
        mtime_offset=harts.machine.mtime_offset,
        features=features(harts),
    )
    for hart in harts.hart:
        record = state.harts.add(x=[0, *hart.x[1:32]], f=hart.f[:], pmpaddr=hart.pmpaddr[:], pmpcfg=bytes(hart.pmpcfg))
        for name in VALUES:
            record.values[name] = getattr(hart, name)
        record.values[_SOFTWARE] = int(hart.lines & MSIP != 0)
    plic = harts.plic
    contexts = 2 * len(harts.hart)
    for name in ("priority", "level", "pending", "claimed"):
        getattr(state.plic, name).extend(getattr(plic, name)[:])
    state.plic.enable.extend(plic.enable[: contexts * WORDS])
    state.plic.threshold.extend(plic.threshold[:contexts])
    return state


def check(harts: Harts, state: CpuState) -> None:
    """Raises BadState for a state that these harts cannot take, or that they could never come to by themselves."""
    if len(state.harts) != len(harts.hart):
        raise errors.BadState("state of cpu", expected=f"{len(harts.hart)} harts", got=str(len(state.harts)))
    if list(state.features) != features(harts):
        raise errors.BadState("state of cpu", expected=",".join(features(harts)), got=",".join(state.features)[:400])
    if state.time >= _MOST_TIME:
        raise errors.BadState("state of cpu: time", expected=f"below {_MOST_TIME} ticks", got=str(state.time))
    spare = harts.spare()
    for number, record in enumerate(state.harts):
        _check_hart(f"hart {number}", harts, spare, record)
    _check_plic(state.plic, 2 * len(harts.hart))


def load(harts: Harts, state: CpuState) -> int:
    """Takes a state that passed ``check``; gives its guest time in nanoseconds."""
    harts.machine.mtime_offset = state.mtime_offset
    _load_plic(harts, state.plic)
    for hart, record in zip(harts.hart, state.harts, strict=True):
        _load_hart(hart, record)
    harts.state_loaded()
    return state.time * TICK_NS


def _load_hart(hart: Any, record: HartRecord) -> None:
    hart.x[1:32] = record.x[1:32]
    hart.f[:] = list(record.f)
    hart.pmpaddr[:] = list(record.pmpaddr)
    hart.pmpcfg[:] = list(record.pmpcfg)
    for name in VALUES:
        setattr(hart, name, record.values[name])
    hart.lines = MSIP if record.values[_SOFTWARE] else 0
    hart.timers = hart.stop_at = hart.deadline = 0


def _load_plic(harts: Harts, state: PlicState) -> None:
    plic = harts.plic
    for name in ("priority", "level", "pending", "claimed", "enable", "threshold"):
        values = list(getattr(state, name))
        getattr(plic, name)[: len(values)] = values


def _check_hart(hart: str, harts: Harts, spare: SpareHart, record: HartRecord) -> None:
    names = {*VALUES, _SOFTWARE}
    if wrong := names ^ set(record.values):
        raise errors.BadState(
            f"state of {hart}", expected=f"values of {len(names)} names", got=f"not so of {min(wrong)}"
        )
    _check_length(f"{hart}: x", record.x, 32)
    _check_length(f"{hart}: f", record.f, 32)
    _check_length(f"{hart}: pmpaddr", record.pmpaddr, PMP_ENTRIES)
    _check_length(f"{hart}: pmpcfg", record.pmpcfg, PMP_ENTRIES)
    values = record.values
    for name, legal in (*OTHER_VALUES.items(), (_SOFTWARE, _BOOLEAN)):
        if values[name] not in legal:
            raise errors.BadState(f"state of {hart}: {name}", expected="a legal value", got=hex(values[name]))
    if values["pc"] % harts.instruction_alignment:
        expected = f"a multiple of {harts.instruction_alignment}"
        raise errors.BadState(f"state of {hart}: pc", expected=expected, got=hex(values["pc"]))
    written = spare.after(
        [
            *((_CSR_NUMBERS[name], values[name]) for name in CSR_VALUES),
            *((_CSR_NUMBERS["pmpaddr0"] + index, value) for index, value in enumerate(record.pmpaddr) if value),
            *(
                (_CSR_NUMBERS[f"pmpcfg{first // 4}"], int.from_bytes(record.pmpcfg[first : first + 8], "little"))
                for first in range(0, PMP_ENTRIES, 8)
                if any(record.pmpcfg[first : first + 8])
            ),
        ]
    )
    found = [(name, values[name], getattr(written, name)) for name in CSR_VALUES]
    for name in ("pmpaddr", "pmpcfg"):
        pairs = zip(getattr(record, name), getattr(written, name), strict=True)
        found += [(f"{name}{index}", value, legal) for index, (value, legal) in enumerate(pairs)]
    for name, value, legal in found:
        if value != legal:
            raise errors.BadState(
                f"state of {hart}: {name}", expected=f"what can be written to it, such as {legal:#x}", got=hex(value)
            )


def _check_plic(plic: PlicState, contexts: int) -> None:
    lengths = {
        "priority": SOURCES, "level": WORDS, "pending": WORDS, "claimed": WORDS,
        "enable": contexts * WORDS, "threshold": contexts,
    }  # fmt: skip
    for name, length in lengths.items():
        values = getattr(plic, name)
        _check_length(f"plic: {name}", values, length)
        if name in ("priority", "threshold"):
            illegal = [value for value in values if value > MAX_PRIORITY] + [v for v in plic.priority[:1] if v]
        else:
            illegal = [value for value in values[::WORDS] if value & 1]  # source 0 does not exist
        if illegal:
            raise errors.BadState(f"state of plic: {name}", expected="a legal value", got=hex(illegal[0]))


def _check_length(what: str, values: Any, expected: int) -> None:
    if len(values) != expected:
        raise errors.BadState(f"state of {what}", expected=f"{expected} values", got=str(len(values)))
