"""Where guest physical memory lies on the host."""

from __future__ import annotations

from ..native.lang import at, inline, native, ref, u64
from .state import Hart, Machine


@inline
def machine_of(hart: Hart) -> Machine:
    return at(Machine, hart.machine)


@native
def segment_of(hart: Hart, physical: u64) -> u64:
    """The host address of the :class:`Segment` that holds a physical address, or 0."""
    machine = machine_of(hart)
    for i in range(machine.segment_count):
        segment = machine.segments[i]
        if physical - segment.base < segment.size:
            return ref(segment)
    return 0
