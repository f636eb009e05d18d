"""Interrupt controllers and timers: parts of the machine that the cpu's native code answers for. They know harts by
number, and lines by the bits that they are told; no instruction set."""
