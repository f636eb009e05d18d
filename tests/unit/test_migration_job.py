"""Which machine can go on as which other one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vmesh.errors import BadState
from vmesh.v1.migration_pb2 import Configuration
from vmesh_services.migration.job import check_same_machine
from vmesh_services.migration.status import Status


def machine(change: Callable[[Configuration], object] = lambda made: None) -> Configuration:
    made = Configuration(board="virt")
    made.services.add(name="cpu", kind="cpu", seen={"harts": "1", "features": "i,m,a"})
    made.services.add(name="blk0", kind="virtio-blk", seen={"base": "0x10008000", "irq": "8"})
    made.services.add(name="memory", kind="memory")
    made.segments.add(name="ram", base=1 << 31, size=1 << 26, writable=True)
    change(made)
    return made


def say_less(made: Configuration) -> None:
    for each in made.services:
        each.seen.clear()


def test_machine_goes_on_as_one_like_it_also_from_a_stream_that_says_less() -> None:
    check_same_machine(machine(), machine())
    check_same_machine(machine(), machine(say_less))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda made: made.services[0].seen.update(harts="2"), "service 'cpu': harts: expected 1, got 2"),
        (lambda made: made.services[0].seen.update(features="i,m"), "service 'cpu': features: expected i,m,a, got i,m"),
        (lambda made: made.services[0].seen.pop("harts"), "service 'cpu': harts: expected 1, got none"),
        (lambda made: made.services[0].seen.update(new="x"), "service 'cpu': new: expected none, got x"),
        (lambda made: made.services[1].seen.update(base="0x1"), "service 'blk0': base: expected 0x10008000, got 0x1"),
        (lambda made: made.services[1].seen.update(irq="7"), "service 'blk0': irq: expected 8, got 7"),
        (lambda made: setattr(made.services[1], "kind", "x"), "service 'blk0': expected 'virtio-blk', got 'x'"),
        (lambda made: made.services.pop(), "service 'memory': expected 'memory', got none"),
        (lambda made: made.services.add(name="more"), "service 'more': expected none, got ''"),
        (lambda made: setattr(made.segments[0], "size", 1 << 27), "memory: expected 64 MiB of RAM (-m), got 128 MiB"),
        (lambda made: setattr(made.segments[0], "size", 24576), "memory: expected 64 MiB of RAM (-m), got 24 KiB"),
        (
            lambda made: setattr(made.segments[0], "base", 0),
            "memory: expected ram of 64 MiB at 0x80000000, got ram of 64 MiB at 0x0",
        ),
        (
            lambda made: made.segments.add(name="rom", size=100),
            "memory: expected ram of 64 MiB at 0x80000000, got ram of 64 MiB at 0x80000000, rom of 100 bytes at 0x0",
        ),
        (lambda made: setattr(made, "board", "other"), "board: expected virt, got 'other'"),
    ],
)
def test_what_differs_is_named(change: Callable[[Configuration], object], reason: str) -> None:
    with pytest.raises(BadState) as refused:
        check_same_machine(machine(), machine(change))
    assert str(refused.value).startswith(reason)


def test_rate_of_one_that_has_ended_is_of_all_of_it() -> None:
    found = Status(began=10.0, ended=12.0, transferred=50_000_000, zero=100, normal=300, rate=1.0).message().ram
    assert (found.mbps, found.pages_per_second) == (200.0, 200.0)
