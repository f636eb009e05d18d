"""The A extension (unprivileged specification, chapter 13): all are sequentially consistent, which every aq and rl
allows."""

from __future__ import annotations

from typing import Any

from ...native.lang import i32, u32, u64
from ..semantics import atomic, load_reserved, store_conditional
from .isa import instruction

OPERATIONS = {
    "amoswap": ("00001", "xchg"), "amoadd": ("00000", "add"), "amoxor": ("00100", "xor"), "amoand": ("01100", "and"),
    "amoor": ("01000", "or"), "amomin": ("10000", "min"), "amomax": ("10100", "max"), "amominu": ("11000", "umin"),
    "amomaxu": ("11100", "umax"),
}  # fmt: skip


def _describe(suffix: str, funct3: str, type_: Any, signed: Any) -> None:
    @instruction(f"lr.{suffix}", f"00010 aq rl 00000 rs1 {funct3} rd 0101111", "a", result="rd")
    def lr(rs1: u64) -> u64:
        return u64(signed(load_reserved(type_, rs1)))

    @instruction(f"sc.{suffix}", f"00011 aq rl rs2 rs1 {funct3} rd 0101111", "a", result="rd")
    def sc(rs1: u64, rs2: u64) -> u64:
        return store_conditional(type_, rs1, type_(rs2))

    for name, (funct5, operation) in OPERATIONS.items():
        _describe_operation(f"{name}.{suffix}", f"{funct5} aq rl rs2 rs1 {funct3} rd 0101111", operation, type_, signed)


def _describe_operation(name: str, encoding: str, operation: str, type_: Any, signed: Any) -> None:
    @instruction(name, encoding, "a", result="rd")
    def amo(rs1: u64, rs2: u64) -> u64:
        return u64(signed(atomic(operation, type_, rs1, type_(rs2))))


_describe("w", "010", u32, i32)
_describe("d", "011", u64, u64)
