"""mip while a line from outside is high: what software sets and clears is apart from the line (privileged 3.1.9)."""

from __future__ import annotations

import pytest

from tests.cpu_harness import END_WORD, Cpu
from vmesh_services.cpu.isa.riscv.csr_bits import SEIP, SSIP
from vmesh_services.cpu.isa.riscv.encoding import encode

MIP = 0x344


@pytest.mark.parametrize(("name", "operand"), [("csrrs", SSIP), ("csrrc", 0), ("csrrc", SSIP)])
def test_csrrs_does_not_store_the_external_line(name: str, operand: int) -> None:
    cpu = Cpu()
    start = cpu.base + 64
    cpu.place(start, encode(name, csr=MIP, rs1=5, rd=6), END_WORD)
    cpu.set(start, x={5: operand}, lines=SEIP)

    stop = cpu.run()

    assert stop.why == "end"
    assert cpu.x()[6] & SEIP, "the value read has the line"
    assert cpu.hart.mip & SEIP == 0, "the line was stored as if software had set it"


def test_csrrw_sets_seip_by_software() -> None:
    cpu = Cpu()
    start = cpu.base + 64
    cpu.place(start, encode("csrrw", csr=MIP, rs1=5, rd=6), END_WORD)
    cpu.set(start, x={5: SEIP})

    assert cpu.run().why == "end"
    assert cpu.hart.mip & SEIP
