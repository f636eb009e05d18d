"""Zicond: czero.eqz and czero.nez, in each tier, and what they are without the extension."""

from __future__ import annotations

import pytest

from tests.cpu_harness import Cpu
from tests.models.guest import CODE, put, run
from tests.models.tiers import INTERPRET, TRANSLATE
from vmesh_services.cpu.isa.riscv.features import FEATURES

ILLEGAL = 2


@pytest.mark.parametrize("mode", [INTERPRET, TRANSLATE])
@pytest.mark.parametrize("condition", [0, 1, 1 << 63, (1 << 64) - 1])
def test_one_of_two_values(mode: str, condition: int) -> None:
    cpu = Cpu(mode=mode)
    run(cpu, "czero.eqz a2, a0, a1\n czero.nez a3, a0, a1\n or a4, a2, a3\n czero.eqz x0, a0, a0\n .word END",
        {10: 0x1234_5678_9ABC_DEF0, 11: condition})  # fmt: skip
    kept = 0x1234_5678_9ABC_DEF0
    assert cpu.x()[12:15] == ([kept, 0, kept] if condition else [0, kept, kept])


def test_without_the_extension_they_are_illegal() -> None:
    cpu = Cpu(features={*FEATURES} - {"zicond"})
    for name in ("czero.eqz", "czero.nez"):
        put(cpu, f"{name} a2, a0, a1\n .word END")
        cpu.set(CODE)
        assert cpu.run().cause == ILLEGAL
