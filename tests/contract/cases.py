"""The devices that the contract is tested with. A new device, in whatever language, adds an entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.c_example import copier_in_c
from tests.contract.harness import Machine
from vmesh import spawn


def python(module: str) -> Callable[[], list[str]]:
    """The program of a device in Python."""
    return lambda: spawn.python(module)


@dataclass(frozen=True)
class Case:
    """A device, and a register of it that keeps what is written (none: `offset` is -1) and is `initial` after reset.

    `has_no_register`: whether an access (write, offset, size) that fits into the region is a fault all the same.
    `program` gives the beginning of the command line, or skips the test where the program cannot be had. `kept` are
    fields of the state that outlive a reset, `timed` those that change as time passes.
    """

    name: str
    program: Callable[[], list[str]]
    kind: str
    arguments: tuple[str, ...]
    base: int
    irqs: tuple[int, ...]
    offset: int = -1
    size: int = 1
    values: tuple[int, int] = (0, 0)
    initial: int = 0
    kept: tuple[str, ...] = ()
    timed: tuple[str, ...] = ()
    has_no_register: Callable[[bool, int, int], bool] = lambda write, offset, size: False

    @property
    def interrupts_after_kill(self) -> bool:
        """Whether the next life of the device interrupts the guest once, for what may have been lost."""
        return self.kind.startswith("virtio-")

    def start(self, machine: Machine, *more: str, epoch: int = 1) -> None:
        """Start the service, with `more` arguments that come last."""
        arguments = ["--base", hex(self.base), *self.arguments, *more]
        machine.launch(self.program(), self.name, *arguments, epoch=epoch)


UART = Case(
    name="uart0",
    program=python("vmesh_services.devices.ns16550a"),
    kind="ns16550a",
    arguments=("--irq", "10"),
    base=0x1000_0000,
    irqs=(10,),
    offset=7,
    values=(0x5A, 0xA5),
)
RTC = Case(
    name="rtc",
    program=python("vmesh_services.devices.goldfish_rtc"),
    kind="goldfish-rtc",
    arguments=("--irq", "11"),
    base=0x10_1000,
    irqs=(11,),
    offset=0x0C,
    size=4,
    values=(0x1234_5678, 0x8765_4321),
    kept=("offset_ns",),  # the time: a clock with a battery
    timed=("alarm_armed", "irq_pending"),
)
TEST = Case(
    name="test",
    program=python("vmesh_services.devices.sifive_test"),
    kind="sifive-test",
    arguments=(),
    base=0x10_0000,
    irqs=(),
)
FW_CFG = Case(
    name="fw_cfg",
    program=python("vmesh_services.devices.fw_cfg"),
    kind="fw-cfg",
    arguments=("--hart-count", "2"),
    base=0x1010_0000,
    irqs=(),
    has_no_register=lambda write, offset, size: (
        offset != 0 and ((offset, size) not in ((8, 2), (16, 4), (20, 4), (16, 8)) if write else offset < 16)
    ),
)
COPIER = Case(
    name="copier0",
    program=python("docs.examples.copier"),
    kind="copier",
    arguments=("--irq", "20"),
    base=0x400_0000,
    irqs=(20,),
    offset=0x10,
    size=8,
    values=(0x0123_4567_89AB_CDEF, (1 << 64) - 1),
)
COPIER_IN_C = replace(COPIER, name="copier1", program=copier_in_c)
COPIERS = (COPIER, COPIER_IN_C)
RNG = Case(
    name="rng0",
    program=python("vmesh_services.devices.virtio_rng"),
    kind="virtio-rng",
    arguments=("--irq", "8"),
    base=0x1000_8000,
    irqs=(8,),
    offset=0x70,
    size=4,
    values=(1, 3),
)
BLK = Case(
    name="blk0",
    program=python("vmesh_services.devices.virtio_blk"),
    kind="virtio-blk",
    arguments=("--irq", "7", "--file", "README.md", "--read-only"),
    base=0x1000_7000,
    irqs=(7,),
    offset=0x70,
    size=4,
    values=(1, 3),
)
NET = Case(
    name="net0",
    program=python("vmesh_services.devices.virtio_net"),
    kind="virtio-net",
    arguments=("--irq", "6", "--netdev", "stream,addr.type=unix,addr.path=/nonexistent/peer"),
    base=0x1000_6000,
    irqs=(6,),
    offset=0x70,
    size=4,
    values=(1, 3),
)
SHARE = Case(
    name="share0",
    program=python("vmesh_services.devices.virtio_9p"),
    kind="virtio-9p",
    arguments=("--irq", "5", "--path", "docs", "--tag", "docs", "--read-only"),
    base=0x1000_5000,
    irqs=(5,),
    offset=0x70,
    size=4,
    values=(1, 3),
)
HVC = Case(
    name="console0",
    program=python("vmesh_services.devices.virtio_console"),
    kind="virtio-console",
    arguments=("--irq", "4", "--chardev", "null"),
    base=0x1000_4000,
    irqs=(4,),
    offset=0x70,
    size=4,
    values=(1, 3),
)
BALLOON = Case(
    name="balloon0",
    program=python("vmesh_services.devices.virtio_balloon"),
    kind="virtio-balloon",
    arguments=("--irq", "3"),
    base=0x1000_3000,
    irqs=(3,),
    offset=0x104,  # actual
    size=4,
    values=(1, 3),
)
ALL = (UART, RTC, TEST, FW_CFG, *COPIERS, RNG, BLK, NET, SHARE, HVC, BALLOON)
WITH_STATE = tuple(case for case in ALL if case.offset >= 0)
