"""The harts' state as a message (proto/vmesh/v1/cpu.proto: CpuState), and back. Nothing of the host is in it."""

from __future__ import annotations

import time
from typing import Any

from vmesh import errors
from vmesh.v1.cpu_pb2 import CpuState, HartRecord, PlicState

from .harts import Harts
from .isa.riscv.csr_bits import MSIP
from .isa.riscv.features import FEATURES
from .isa.riscv.plic_layout import SOURCES, WORDS
from .isa.riscv.state import PMP_ENTRIES

VERSION = 1
TICK_NS = 100

#: The scalars of a hart's record that are its state; what else is in it is derived from these or from memory.
VALUES = (
    "pc", "privilege", "waiting", "retired", "cycle_offset", "instret_offset", "mtimecmp", "fflags", "frm", "mstatus",
    "medeleg",
    "mideleg", "mie", "mip", "mtvec", "mcounteren", "menvcfg", "mscratch", "mepc", "mcause", "mtval", "stvec",
    "scounteren",
    "senvcfg", "sscratch", "sepc", "scause", "stval", "satp", "stimecmp",
)  # fmt: skip
_SOFTWARE = "software_interrupt"


def _now() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def features(harts: Harts) -> list[str]:
    """The names of the features that are on, sorted."""
    return sorted(name for number, name in enumerate(FEATURES) if harts.machine.features >> number & 1)


def guest_ns(harts: Harts, host_ns: int) -> int:
    """Guest time at a host's time. Its base is modulo 2**64: a guest can be older than the host that it has come to."""
    return (host_ns - harts.machine.time_base) & (1 << 64) - 1  # type: ignore[no-any-return]


def save(harts: Harts, stopped_at: int) -> CpuState:
    """The state of paused harts; ``stopped_at`` is the host's monotonic clock in nanoseconds when guest time
    stopped."""
    state = CpuState(time=guest_ns(harts, stopped_at) // TICK_NS, features=features(harts))
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
    """Raises BadState for a state that these harts cannot take."""
    if len(state.harts) != len(harts.hart):
        raise errors.BadState("state of cpu", expected=f"{len(harts.hart)} harts", got=str(len(state.harts)))
    if list(state.features) != features(harts):
        raise errors.BadState("state of cpu", expected=",".join(features(harts)), got=",".join(state.features)[:400])
    for number, record in enumerate(state.harts):
        missing = {*VALUES, _SOFTWARE} - set(record.values)
        if missing:
            raise errors.BadState(f"state of hart {number}", expected=f"a value of {min(missing)}")
        _check_length(f"hart {number}: x", record.x, 32)
        _check_length(f"hart {number}: f", record.f, 32)
        _check_length(f"hart {number}: pmpaddr", record.pmpaddr, PMP_ENTRIES)
        _check_length(f"hart {number}: pmpcfg", record.pmpcfg, PMP_ENTRIES)
        if record.values["privilege"] not in (0, 1, 3):
            raise errors.BadState(
                f"hart {number}: privilege", expected="0, 1 or 3", got=str(record.values["privilege"])
            )
    _check_plic(state.plic, 2 * len(harts.hart))


def load(harts: Harts, state: CpuState) -> int:
    """Takes a state that passed ``check``; gives the host's monotonic clock at which guest time stands still."""
    now = _now()
    harts.machine.time_base = now - state.time * TICK_NS
    _load_plic(harts, state.plic)
    for hart, record in zip(harts.hart, state.harts, strict=True):
        _load_hart(hart, record)
    harts.state_loaded()
    return now


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


def _check_plic(plic: PlicState, contexts: int) -> None:
    _check_length("plic: priority", plic.priority, SOURCES)
    for name in ("level", "pending", "claimed"):
        _check_length(f"plic: {name}", getattr(plic, name), WORDS)
    _check_length("plic: enable", plic.enable, contexts * WORDS)
    _check_length("plic: threshold", plic.threshold, contexts)


def _check_length(what: str, values: Any, expected: int) -> None:
    if len(values) != expected:
        raise errors.BadState(f"state of {what}", expected=f"{expected} values", got=str(len(values)))
