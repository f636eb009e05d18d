"""Random programs of hundreds of instructions, compared at some of their instructions and at their end.

``python -P -m bench.fuzz_cpu`` runs as many as time allows; it names a seed that differs, which
``models.programs.write`` takes.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.models.oracle import BREAKPOINT, Ours, Qemu
from tests.models.programs import (
    ON_INTERPRETER,
    ON_QEMU,
    ON_UNICORN,
    compare,
    interpreter,
    placed,
    qemu,
    some,
    unicorn,
    write,
)
from tests.models.tiers import BOTH, LIMITS, TRANSLATE, portion

SEED = 1_000


@pytest.fixture(scope="module")
def ours() -> Ours:
    return Ours()


def test_programs_end_and_are_long(ours: Ours) -> None:
    programs = [write(seed, ON_QEMU) for seed in portion(range(SEED, SEED + 100))]
    states = ours.run([case for _, _, case in placed(programs, some(0))])
    assert {state.cause for state in states} == {BREAKPOINT}
    assert min(ours.retired) > 50
    assert sum(ours.retired) / len(ours.retired) > 250


def test_programs_agree_with_unicorn(ours: Ours) -> None:
    oracle = unicorn()
    found: list[str] = []
    for start in range(SEED, SEED + 300, 60):
        found += compare([write(seed, ON_UNICORN) for seed in portion(range(start, start + 60))], ours, oracle)
    assert not found, "\n".join(found[:5])


@pytest.mark.peer
def test_programs_agree_with_qemu(ours: Ours, peer: Callable[[str], str]) -> None:
    peer(Qemu.PROGRAM)
    oracle = qemu()
    found: list[str] = []
    for start in range(SEED, SEED + 300, 60):
        found += compare([write(seed, ON_QEMU) for seed in portion(range(start, start + 60))], ours, oracle)
    assert not found, "\n".join(found[:5])


@pytest.mark.parametrize(("mode", "limit"), list(zip((TRANSLATE, BOTH) * 2, LIMITS, strict=True)))
def test_translated_programs_agree_with_the_interpreter(mode: str, limit: int) -> None:
    translated = Ours(mode)
    translated.cpu.harts.limit = limit
    programs = [write(SEED + limit + n, ON_INTERPRETER, 120) for n in range(4)]
    found = compare(programs, translated, interpreter(), stops=0)
    assert not found, "\n".join(found[:5])
    assert translated.cpu.harts.installed > 20
