"""RISC-V to a machine: RV64GC with the extensions the `virt` board offers, in M, S and U mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..interface import Control, Isa, Lines
from ..registers import Kind, registers_of
from .csr import CSRS
from .csr_bits import MEIP, MSIP, MTIP, SEIP
from .features import FEATURES
from .lookup import look_up
from .state import PMP_ENTRIES, Hart, Slot

#: CSRs that are there with an extension only; the counters behind ``_NO_COUNTERS`` count nothing and are left out.
_NEEDS = {"fflags": "f", "frm": "f", "fcsr": "f", "stimecmp": "sstc"}
_NO_COUNTERS = ("hpmcounter", "mhpmcounter", "mhpmevent")
_NUMBERS = {csr.name: csr.number for csr in CSRS.values()}


def instruction_length(first: int) -> int:
    """Bytes of the instruction that begins with this byte (unprivileged specification 1.5)."""
    return 4 if first & 3 == 3 else 2


def alignment(features: frozenset[str]) -> int:
    """Bytes to a multiple of which every pc is (IALIGN of the unprivileged specification, 1.5)."""
    return 2 if "c" in features else 4


def writes(values: Mapping[str, int], files: Mapping[str, Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Control registers in the order of their declaration, and PMP's: addresses first, which a configuration locks."""
    for name, register in registers_of(Hart).items():
        if register.kind is Kind.CONTROL and register.saved:
            yield register.number, values[name]
    for index, value in enumerate(files["pmpaddr"]):
        if value:
            yield _NUMBERS["pmpaddr0"] + index, value
    for first in range(0, PMP_ENTRIES, 8):
        if any(part := bytes(files["pmpcfg"][first : first + 8])):
            yield _NUMBERS[f"pmpcfg{first // 4}"], int.from_bytes(part, "little")


ISA = Isa(
    name="riscv",
    features=FEATURES,
    hart=Hart,
    slot=Slot,
    controls=tuple(
        Control(csr.number, csr.name, _NEEDS.get(csr.name, ""))
        for csr in sorted(CSRS.values(), key=lambda csr: csr.number)
        if not csr.name.startswith(_NO_COUNTERS)
    ),
    lines=Lines(software=MSIP, timer=MTIP, external=(MEIP, SEIP)),
    alignment=alignment,
    length=instruction_length,
    look_up=look_up,
    writes=writes,
    code_module=f"{__package__}.code",
)
