"""ns16550a: the serial port of the `virt` board.

Register for register the PC16550D (National Semiconductor data sheet, section 8), with a transmitter that takes no
time. Guests boot on polling LSR and writing THR, so the first is a shadow and the second posted: neither makes a hart
wait. IIR, which drivers read twice an interrupt, is a shadow unless reading it clears the interrupt that it names.
"""
