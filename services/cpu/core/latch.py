"""Interrupt status registers that the cpu keeps for devices (proto/vmesh/v1/bus.proto: READ_LATCH), and the FIFOs
through which devices raise them. Any thread may; Python is not needed for an interrupt."""

from __future__ import annotations

from ..native.lang import (
    at,
    atomic_load,
    atomic_store,
    call_host,
    compare_exchange,
    cpu_relax,
    export,
    i64,
    native,
    peek,
    poke,
    ref,
    u8,
    u32,
    u64,
)  # fmt: skip
from .provided import drive_source, lock_sources, unlock_sources
from .state import RAISE_WORDS, RAISES, RAISES_LOOKED_AT, SHADOW_SHIFT, Hart, Latch, Listener, Machine, Region

LATCH_BYTES = 4
_REVENTS_SHIFT = 48


@native
def put(machine: Machine, latch: Latch, value: u64) -> None:
    """Gives a latch its value, which a hart reads before it takes the interrupt; with the sources locked."""
    poke(u32, latch.value, u32(value))
    poke(u8, latch.kind, peek(u8, latch.kind) | u8(LATCH_BYTES << SHADOW_SHIFT))
    drive_source(machine, latch.source, u64(value != 0))


@export
def latch_set(machine: Machine, number: u64, sequence: u64, value: u64) -> None:
    """Update ``sequence`` of the device says all of a latch."""
    latch = machine.latches[number]
    lock_sources(machine)
    if sequence >= latch.sequence:
        latch.sequence = sequence
        put(machine, latch, value)
    unlock_sources(machine)


@export
def latch_raise(machine: Machine, number: u64, sequence: u64, bits: u64) -> None:
    """Update ``sequence`` of the device raises bits, unless a later one has said the whole value."""
    latch = machine.latches[number]
    lock_sources(machine)
    if sequence >= latch.sequence:
        put(machine, latch, u64(peek(u32, latch.value)) | bits)
    unlock_sources(machine)


@export
def latch_begin(machine: Machine, number: u64) -> None:
    """Another life of the device counts its updates anew; the value is the cpu's own."""
    lock_sources(machine)
    machine.latches[number].sequence = 0
    unlock_sources(machine)


@native
def clear_latch(hart: Hart, region: Region, offset: u64, size: u64, value: u64) -> bool:
    """A hart's write; whether it was to a register that clears bits of a latch."""
    machine = at(Machine, hart.machine)
    for i in range(region.first_latch, region.first_latch + region.latch_count):
        latch = machine.latches[i]
        if latch.clears_size == size and latch.clears_offset == offset:
            lock_sources(machine)
            put(machine, latch, u64(peek(u32, latch.value)) & ~value)
            unlock_sources(machine)
            return True
    return False


@native
def lock(listener: Listener) -> None:
    while compare_exchange(u64, ref(listener.lock), 0, 1) != 0:
        cpu_relax()


@export
def listener_records(machine: Machine, number: u64, words: u64) -> None:
    """From the next read on a record of the device has so many words."""
    listener = machine.listeners[number]
    lock(listener)
    listener.words = words
    atomic_store(u64, ref(listener.lock), 0)


@export
def listener_begin(machine: Machine, number: u64, epoch: u64) -> None:
    """Another life of the device: what a former one raises is not heard any more."""
    listener = machine.listeners[number]
    lock(listener)
    listener.epoch = epoch
    listener.sequence = 0
    atomic_store(u64, ref(listener.lock), 0)


@native
def take_record(machine: Machine, listener: Listener, place: u64) -> None:
    """One raise, at ``place`` of what was read."""
    epoch = listener.records[place]
    sequence = listener.records[place + 1]
    number = listener.records[place + 2] & 0xFFFF_FFFF
    if number >= listener.latch_count:
        listener.nonsense += 1
        return
    if epoch != listener.epoch:
        return
    if listener.words == RAISE_WORDS:
        listener.time = listener.records[place + 3]
    latch_raise(machine, listener.first_latch + number, sequence, listener.records[place + 2] >> 32)
    if sequence > listener.sequence:
        listener.sequence = sequence


@export
def take_raises(machine: Machine, number: u64) -> u64:
    """Takes some of what a device has raised through its FIFO; gives how many bytes there were."""
    listener = machine.listeners[number]
    lock(listener)
    record = 8 * listener.words
    size = call_host(machine.read, listener.file, ref(listener.records), record * RAISES)
    if i64(size) <= 0:
        size = 0
    if size % record != 0:
        listener.nonsense += 1
    else:
        for i in range(size // record):
            take_record(machine, listener, listener.words * i)
    listener.taken += size // record
    atomic_store(u64, ref(listener.lock), 0)
    return size


@export
def listen(machine: Machine) -> u64:
    """Takes what devices raise, until one gives cause to look: its number; or that of no listener, if the last entry of
    ``polls`` is readable."""
    while True:
        count = atomic_load(u64, ref(machine.listener_count))
        for i in range(count + 1):
            machine.polls[i] &= (u64(1) << _REVENTS_SHIFT) - 1
        call_host(machine.poll, ref(machine.polls), count + 1, ~u64(0))
        if machine.polls[count] >> _REVENTS_SHIFT != 0:
            return count
        for i in range(count):
            if machine.polls[i] >> _REVENTS_SHIFT != 0:
                take_raises(machine, i)
                listener = machine.listeners[i]
                if listener.taken >= RAISES_LOOKED_AT or listener.nonsense != 0:
                    return i


EXPORTS = (latch_set, latch_raise, latch_begin, listener_records, listener_begin, take_raises, listen)
