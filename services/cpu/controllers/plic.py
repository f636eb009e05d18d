"""The PLIC (RISC-V Platform-Level Interrupt Controller specification 1.0), with the `virt` board's layout.

Context ``HART_CONTEXTS`` * n + i drives line i of hart n (``Plic.lines``). Any thread may use it: a spin lock guards
its record.
"""

from __future__ import annotations

from ..core.attention import set_line
from ..core.state import PENDING_TRAP, Hart, Machine
from ..native.lang import (
    at,
    atomic_store,
    compare_exchange,
    cpu_relax,
    ctz,
    inline,
    native,
    ref,
    u32,
    u64,
)  # fmt: skip
from .plic_layout import (
    ENABLE,
    HART_CONTEXTS,
    MAX_PRIORITY,
    NUMBER,
    PENDING,
    PRIORITY,
    SOURCES,
    THRESHOLD,
    WORDS,
    Plic,
)


@inline
def plic_of(machine: Machine) -> Plic:
    return at(Plic, machine.controllers[NUMBER])


@native
def acquire(plic: Plic) -> None:
    while compare_exchange(u64, ref(plic.lock), 0, 1) != 0:
        cpu_relax()


@inline
def release(plic: Plic) -> None:
    atomic_store(u64, ref(plic.lock), 0)


@native
def best_source(plic: Plic, context: u64, above: u32) -> u64:
    """The pending, enabled source of the highest priority above ``above``; the lowest number of equals; 0 for none."""
    best = u64(0)
    highest = above
    for word in range(WORDS):
        candidates = plic.pending[word] & plic.enable[context * WORDS + word]
        while candidates != 0:
            source = 32 * word + u64(ctz(candidates))
            candidates &= candidates - 1
            if plic.priority[source] > highest:
                highest = plic.priority[source]
                best = source
    return best


@native
def notified(plic: Plic, context: u64) -> bool:
    """Whether a context's external interrupt is pending: the threshold masks the priorities up to it."""
    return best_source(plic, context, plic.threshold[context]) != 0


@native
def update_lines(machine: Machine, plic: Plic) -> None:
    """Drives each context's external interrupt."""
    for number in range(machine.hart_count):
        hart = at(Hart, machine.harts[number])
        for context in range(HART_CONTEXTS):
            set_line(hart, plic.lines[context], notified(plic, HART_CONTEXTS * number + context))


@native
def drive(machine: Machine, plic: Plic, source: u64, level: u64) -> None:
    """Interrupt line ``source`` (1 to 95) is high or low. A level-triggered gateway: a request once made stays pending.
    Source 0 does not exist. By who has the lock."""
    word = source >> 5
    bit = u32(1) << (source & 31)
    if source == 0 or source >= SOURCES:
        pass
    elif level != 0:
        plic.level[word] |= bit
        if plic.claimed[word] & bit == 0:
            plic.pending[word] |= bit
    else:
        plic.level[word] &= ~bit
    update_lines(machine, plic)


@native
def claim(plic: Plic, context: u64) -> u64:
    # the threshold does not matter here (1.0, chapter 9)
    source = best_source(plic, context, u32(0))
    if source != 0:
        bit = u32(1) << (source & 31)
        plic.pending[source >> 5] &= ~bit
        plic.claimed[source >> 5] |= bit
    return source


@native
def complete(plic: Plic, context: u64, source: u64) -> None:
    """Ends the handling of a source; ignored where the source is not enabled for the context."""
    if source == 0 or source >= SOURCES:
        return
    word = source >> 5
    bit = u32(1) << (source & 31)
    if plic.enable[context * WORDS + word] & bit == 0:
        return
    plic.claimed[word] &= ~bit
    if plic.level[word] & bit != 0:
        plic.pending[word] |= bit


@native
def plic_read(hart: Hart, offset: u64, size: u64) -> u64:
    """A load from the PLIC: words only. A read of a claim register claims."""
    if size != 4 or offset & 3 != 0:
        hart.pending = PENDING_TRAP
        return 0
    machine = at(Machine, hart.machine)
    plic = plic_of(machine)
    value = u64(0)
    acquire(plic)
    if offset < PRIORITY + 4 * SOURCES:
        value = u64(plic.priority[offset >> 2])
    elif offset >= PENDING and offset < PENDING + 4 * WORDS:
        value = u64(plic.pending[(offset - PENDING) >> 2])
    elif offset >= ENABLE and offset < ENABLE + 0x80 * HART_CONTEXTS * machine.hart_count:
        if (offset & 0x7F) >> 2 < WORDS:
            value = u64(plic.enable[((offset - ENABLE) >> 7) * WORDS + ((offset & 0x7F) >> 2)])
    elif offset >= THRESHOLD and offset < THRESHOLD + 0x1000 * HART_CONTEXTS * machine.hart_count:
        context = (offset - THRESHOLD) >> 12
        if offset & 0xFFF == 0:
            value = u64(plic.threshold[context])
        elif offset & 0xFFF == 4:
            value = claim(plic, context)
            update_lines(machine, plic)
    release(plic)
    return value


@native
def plic_write(hart: Hart, offset: u64, size: u64, value: u64) -> None:
    """A store to the PLIC: words only. A write of a claim register completes."""
    if size != 4 or offset & 3 != 0:
        hart.pending = PENDING_TRAP
        return
    machine = at(Machine, hart.machine)
    plic = plic_of(machine)
    acquire(plic)
    if offset < PRIORITY + 4 * SOURCES:
        if offset != 0:
            plic.priority[offset >> 2] = u32(value) & MAX_PRIORITY
    elif offset >= ENABLE and offset < ENABLE + 0x80 * HART_CONTEXTS * machine.hart_count:
        word = (offset & 0x7F) >> 2
        if word < WORDS:
            # source 0 does not exist
            plic.enable[((offset - ENABLE) >> 7) * WORDS + word] = u32(value) & (~u32(0) if word != 0 else ~u32(1))
    elif offset >= THRESHOLD and offset < THRESHOLD + 0x1000 * HART_CONTEXTS * machine.hart_count:
        context = (offset - THRESHOLD) >> 12
        if offset & 0xFFF == 0:
            plic.threshold[context] = u32(value) & MAX_PRIORITY
        elif offset & 0xFFF == 4:
            complete(plic, context, value)
    update_lines(machine, plic)
    release(plic)
