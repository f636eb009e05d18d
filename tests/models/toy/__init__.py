"""A toy instruction set of 32 instructions, to show that the core knows none: eight registers, no privileges, no
translation, one vector for exceptions and interrupts."""
