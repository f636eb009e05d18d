"""The memory service: owns guest RAM and ROM, the address map, page flags, and DMA for whoever cannot map RAM."""
