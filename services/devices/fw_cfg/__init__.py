"""fw_cfg: items of the host, by number and by name, that the guest reads byte by byte or has copied into its memory.

Source: QEMU's docs/specs/fw_cfg.rst, and what its `virt` board answers (tests/contract/test_against_qemu.py).
"""
