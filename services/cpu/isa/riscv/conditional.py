"""Zicond: conditional operations without branches (unprivileged specification, chapter on Zicond)."""

from __future__ import annotations

from ...native.lang import u64
from .isa import instruction


@instruction("czero.eqz", "0000111 rs2 rs1 101 rd 0110011", "zicond", result="rd")
def czero_eqz(rs1: u64, rs2: u64) -> u64:
    return u64(0) if rs2 == 0 else rs1


@instruction("czero.nez", "0000111 rs2 rs1 111 rd 0110011", "zicond", result="rd")
def czero_nez(rs1: u64, rs2: u64) -> u64:
    return u64(0) if rs2 != 0 else rs1
