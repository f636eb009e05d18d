"""The board as data: QEMU's RISC-V `virt` memory map, CPU models, device tree, and what lies in memory at power-on.

virt        addresses and interrupt numbers
cpu_model   `-cpu` text to an ISA description
devicetree  the flattened device tree that the guest finds
boot        firmware, kernel, initrd and device tree to a BootPlan: which bytes go where, and where harts start
encode      RISC-V instruction words, for the few lines of machine code that the project writes itself

Source for all: QEMU's docs/system/riscv/virt.rst and the device tree that `-machine virt,dumpdtb=` writes.
"""
