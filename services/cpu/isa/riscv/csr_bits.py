"""Bits of CSRs and page table entries (privileged specification, chapters 3, 12 and 21)."""

from __future__ import annotations

# mstatus and sstatus
SIE, MIE, SPIE, UBE, MPIE, SPP = 1 << 1, 1 << 3, 1 << 5, 1 << 6, 1 << 7, 1 << 8
MPP_SHIFT = 11
MPP = 3 << MPP_SHIFT
FS, FS_INITIAL, FS_DIRTY = 3 << 13, 1 << 13, 3 << 13
XS, MPRV, SUM, MXR, TVM, TW, TSR = 3 << 15, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21, 1 << 22
UXL, SXL, SD = 2 << 32, 2 << 34, 1 << 63

# mip and mie
SSIP, MSIP, STIP, MTIP, SEIP, MEIP = 1 << 1, 1 << 3, 1 << 5, 1 << 7, 1 << 9, 1 << 11

# menvcfg
FIOM, CBIE, CBCFE, CBZE, ADUE, PBMTE, STCE = 1, 3 << 4, 1 << 6, 1 << 7, 1 << 61, 1 << 62, 1 << 63

# page table entries
PTE_V, PTE_R, PTE_W, PTE_X, PTE_U, PTE_G, PTE_A, PTE_D = (1 << i for i in range(8))
PTE_PPN_SHIFT = 10
PPN_MASK = (1 << 44) - 1
PTE_RESERVED = 0x7F << 54
PTE_PBMT_SHIFT = 61
PTE_NAPOT = 1 << 63

# satp
SATP_MODE_SHIFT, SATP_ASID_SHIFT = 60, 44
ASID_MASK = 0xFFFF

# pmpcfg
PMP_R, PMP_W, PMP_X, PMP_A_SHIFT, PMP_L = 1, 2, 4, 3, 0x80
PMP_OFF, PMP_TOR, PMP_NA4, PMP_NAPOT = 0, 1, 2, 3

INTERRUPT = 1 << 63
