"""What native code knows of the host is in one file, and a guest's FENCE is what RVWMO asks for on any of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from vmesh_services.cpu.isa.riscv import integer
from vmesh_services.cpu.native import host

#: Of the fields of a FENCE, bits of memory and of devices.
W, R, DEVICES = 1, 2, 12


@pytest.mark.parametrize(
    ("before", "after", "ordered_by_x86"),
    [(W, R, False), (R | W, R | W, False), (R, R, True), (R, R | W, True), (W, W, True), (R | W, W, True)],
)
@pytest.mark.parametrize("total_store_order", [True, False])
def test_a_fence_is_where_the_host_does_not_order_by_itself(
    monkeypatch: pytest.MonkeyPatch, before: int, after: int, ordered_by_x86: bool, total_store_order: bool
) -> None:
    fences: list[None] = []
    monkeypatch.setattr(host, "TOTAL_STORE_ORDER", total_store_order)
    monkeypatch.setattr(host, "fence", lambda: fences.append(None))
    order: Any = host.order
    order.python(before, after)
    order.python(before | DEVICES | 1 << 8, after | DEVICES | 1 << 8)
    assert len(fences) == (0 if ordered_by_x86 and total_store_order else 2)


def test_what_is_ordered_with_devices_alone_needs_no_fence_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "TOTAL_STORE_ORDER", False)
    monkeypatch.setattr(host, "fence", lambda: pytest.fail("no fence"))
    order: Any = host.order
    for before, after in ((DEVICES, R | W), (R | W, DEVICES), (0, R | W)):
        order.python(before, after)


def test_the_fields_of_an_instruction_are_those_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """FENCE rw,r: bits 27 to 24 are I, O, R and W before it, 23 to 20 those behind."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(integer, "order", lambda before, after: asked.append((before & 3, after & 3)))
    fence: Any = integer.fence_
    getattr(fence, "python", fence)(0b0000_0011_0010_00000_000_00000_0001111)
    assert asked == [(R | W, R)]


def test_no_other_file_of_the_cpu_knows_the_host(root: Path) -> None:
    """Numbers of system calls, relocations, instructions of its own, and what its memory keeps in order."""
    host_file = root / "services/cpu/native/host.py"
    words = re.compile(r"x86|R_X86|amd64|SCHED_YIELD = |FUTEX\w* = |\"pause\", \"\"|\bTSO\b", re.IGNORECASE)
    found = [
        (path.relative_to(root).as_posix(), line)
        for path in (root / "services/cpu").rglob("*.py")
        if path != host_file
        for line in path.read_text().splitlines()
        if words.search(line)
    ]
    assert not found
