"""What the flags of `vmesh run` come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from vmesh.board import virt
from vmesh.board.errors import BoardError, ImageError
from vmesh.cli import monitors
from vmesh.endpoint import Endpoint
from vmesh.qdev import virtio
from vmesh.qdev.added import Added


class OptionError(Exception):
    """A flag that cannot be followed; the message is one line that says what was expected."""


def status_of(error: Exception) -> int:
    """Of a command that ends with `error`: 2 for flags that cannot be read or do not fit together, 1 for all else."""
    flags = isinstance(error, OptionError) or (isinstance(error, BoardError) and not isinstance(error, ImageError))
    return 2 if flags else 1


@dataclass(frozen=True, slots=True)
class Serial:
    """Where a serial port or a monitor goes: `kind` is stdio, null, none, pty, file (`path`) or socket (`endpoint`)."""

    kind: str = "stdio"
    path: Path | None = None
    endpoint: Endpoint | None = None
    mux: bool = False  # stdio: Ctrl-A keys and the monitor prompt on the same terminal


@dataclass(frozen=True, slots=True)
class FirmwareItem:
    """An item of fw_cfg: what is in `file` when the machine starts, or `text`."""

    name: str
    file: Path | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class RunOptions(Added):
    """What `vmesh run` was asked for. None where the default depends on the rest (see `vmesh.cli.run`)."""

    dumpdtb: Path | None = None
    memory_bytes: int | None = None
    harts: int = 1
    translate: bool = True
    perf_map: bool = False
    cache: bool = True
    cpu: str | None = None
    bios: str | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str | None = None
    dtb: Path | None = None
    firmware_items: tuple[FirmwareItem, ...] = ()
    stdin: str = ""  # of the default guest: prompts or script, see vmesh/guest/initramfs.py
    quiet: bool = False
    nographic: bool = False
    display: str | None = None
    serial: Serial | None = None
    chardevs: tuple[tuple[str, Serial], ...] = ()
    monitor: str | None = None  # on the terminal, behind Ctrl-A c: stdio, none, or as the serial port is
    monitor_devices: tuple[monitors.Monitor, ...] = ()
    name: str | None = None
    paused: bool = False
    incoming: str = ""  # where a migration comes in, or "defer"
    load_snapshot: Path | None = None
    gdb: Endpoint | None = None  # where gdb can connect
    gateway: str = ""  # a second place where the gateway listens, see vmesh.remote
    metrics: str = ""  # HOST:PORT of the loopback interface
    reboot: bool = True
    actions: Mapping[str, str] = field(default_factory=dict)  # what follows upon which event
    log_items: frozenset[str] = frozenset()
    log_file: Path | None = None
    pid_file: Path | None = None
    print_commands: bool = False
    cpu_apart: bool = False
    health_interval: float = 1.0  # seconds between two looks at a service's health
    health_limit: float = 10.0  # seconds without an answer after which a service counts as hung
    bus_limit: float = 20.0  # seconds without a sign of life after which a hart does not wait for a device

    @property
    def boots_default_guest(self) -> bool:
        return self.kernel is None and self.bios is None

    @property
    def consoles(self) -> dict[str, Serial]:
        """What each serial device is connected to, by the device's name."""
        named = dict(self.chardevs)
        return {virt.UART0.name: self.console} | {
            device: named[chardev] for device, chardev in virtio.consoles(self.virtio_devices).items()
        }

    @property
    def terminal(self) -> tuple[str, Serial]:
        """The serial device that the launcher's terminal is for; its kind is not stdio if there is none."""
        return next(
            (each for each in self.consoles.items() if each[1].kind == "stdio"), (virt.UART0.name, self.console)
        )

    @property
    def doors(self) -> tuple[monitors.Monitor, ...]:
        """The monitors besides the one behind Ctrl-A c, chardevs resolved."""
        named = dict(self.chardevs)
        return tuple(
            replace(each, chardev="", endpoint=named[each.chardev].endpoint) if each.chardev else each
            for each in self.monitor_devices
        )

    @property
    def console(self) -> Serial:
        """The serial port as the flags together ask for it."""
        if self.serial is not None:
            return self.serial
        if self.display == "none" and not self.nographic:
            return Serial("null")
        return Serial("stdio", mux=self.monitor != "none")
