"""The RISC-V ISA: RV64GC with the extensions the `virt` board offers, in M, S and U mode."""
