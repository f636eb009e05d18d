"""All instructions, most specific encoding first."""

from __future__ import annotations

from . import atomics, bitmanip, conditional, floating, integer, privileged
from .isa import instruction

__all__ = ["INSTRUCTIONS", "atomics", "bitmanip", "conditional", "floating", "integer", "privileged"]

INSTRUCTIONS = tuple(sorted(instruction.instructions, key=lambda item: -item.mask.bit_count()))
