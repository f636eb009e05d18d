"""From flags to processes: what lies in memory at power-on, and the command line of every service."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmesh import guest
from vmesh.board import boot, commands, cpu_model, devicetree, virt
from vmesh.board.boot import BootFiles, BootPlan
from vmesh.board.errors import BoardError, ImageError
from vmesh.board.parts import Board, Carrier
from vmesh.cli.flags.options import FirmwareItem, RunOptions, Serial
from vmesh.endpoint import Endpoint
from vmesh.machine import MachineDirectory
from vmesh.migration import uri
from vmesh.qdev import external
from vmesh.spawn import ServiceCommand

CACHE = "cache"
_FILES = {"the device tree": "dtb", "the reset vector": "reset"}  # blobs of the boot plan in the machine directory
_LARGEST_ITEM = 64 << 20  # bytes of a file for -fw_cfg: the guest can have the device copy it in one access
_START_SECONDS = 60.0  # for a machine to start that does not wait for anybody
_DEFAULT_RAM = 128 << 20  # QEMU's default for `virt`
_DEFAULT_GUEST_RAM = 512 << 20
_LEAST_GUEST_RAM = 128 << 20  # QEMU's default; with 104 Debian's kernel panics


@dataclass(frozen=True, slots=True)
class MachinePlan:
    """A machine before it starts.

    `files` are those that its directory must hold, by name; `consoles` what the serial devices are connected to, as
    vmesh/chardev.py specifies it, by device; `notes` are for the user.
    """

    services: tuple[ServiceCommand, ...]
    files: dict[str, bytes]
    consoles: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def write(self, machine: MachineDirectory) -> None:
        """Put the files where the command lines say."""
        for name, data in self.files.items():
            (machine.path / name).write_bytes(data)


def plan(options: RunOptions, machine: MachineDirectory) -> MachinePlan:
    """The processes of the machine. Raises BoardError, and GuestError if a guest to boot cannot be made.

    Files that have to be unpacked or built are put into the machine directory.
    """
    board = board_of(options)
    files, firmware = _boot_files(options, machine.path)
    booted = boot.resolve(board, files, scratch=machine.path, firmware=firmware)
    services = _services(options, board, booted, machine)
    notes = [external.note(device, machine.path) for device in options.external if not device.command]
    if options.boots_default_guest and guest.find() is None:
        notes.append("booting the small built-in guest (`vmesh guest fetch` gets Debian's)")
    consoles = {name: _chardev(name, serial, machine) for name, serial in options.consoles.items()}
    notes += [
        f'warning: -fw_cfg {item.name}: names of items should begin with "opt/", others are for the firmware itself'
        for item in options.firmware_items
        if not item.name.startswith("opt/")
    ]
    files_there = {_FILES[blob.name]: blob.data for blob in booted.blobs}
    for number, item in enumerate(options.firmware_items):
        files_there[virt.fw_cfg_item(number)] = _content(item)
    return MachinePlan(services, files_there, consoles, tuple(notes))


def board_of(options: RunOptions) -> Board:
    """The board as the flags describe it. Raises BoardError."""
    ram = options.memory_bytes or (_DEFAULT_GUEST_RAM if options.boots_default_guest else _DEFAULT_RAM)
    if options.boots_default_guest and ram < _LEAST_GUEST_RAM and guest.find() is not None:
        least = f"{_LEAST_GUEST_RAM >> 20}M"
        raise BoardError(f"-m: the default guest, Debian's kernel, needs {least} at least; -kernel boots another")
    board = virt.board(ram, options.harts, cpu_model.parse(options.cpu or "rv64"))
    items = [item.name for item in options.firmware_items]
    own = [virt.fw_cfg(options.harts, items)] if items else []
    return board.with_devices(*own, *options.parts().values(), *(device.part for device in options.external))


def device_tree(options: RunOptions, scratch: Path) -> bytes:
    """What `-machine dumpdtb=` writes; if there is something to boot, with what the boot adds. Raises BoardError."""
    board = board_of(options)
    if options.boots_default_guest:
        return devicetree.build(board)
    files, firmware = _boot_files(options, scratch)
    return boot.resolve(board, files, scratch=scratch, firmware=firmware).dtb.data


def monitor_command(planned: MachinePlan, options: RunOptions, machine: MachineDirectory) -> ServiceCommand:
    """The monitor's command line; it names those of all the others."""
    arguments = ["--machine", str(machine.path)]
    for name, specification in planned.consoles.items():
        arguments += ["--console", f"{name}={specification}"]
    for command in planned.services:
        arguments += ["--service", command.monitor_text]
    if options.gdb:
        arguments += ["--gdb", options.gdb.text]
    for door in options.doors:
        where = door.endpoint or Endpoint(machine.terminal_monitor)
        arguments += ["--door", f"{door.mode}={where.text}"]
    if options.gateway:
        arguments += ["--gateway", options.gateway]
    if options.metrics:
        arguments += ["--metrics", options.metrics]
    if not options.reboot:
        arguments.append("--no-reboot")
    for event, action in options.actions.items():
        arguments += ["--action", f"{event}={action}"]
    if options.incoming:
        adopted = options.incoming.startswith(uri.HANDOVER)
        arguments += ["--incoming", f"unix:{machine.handover}" if adopted else options.incoming]
    if options.load_snapshot is not None:
        arguments += ["--load", str(options.load_snapshot)]
    if options.paused:
        arguments.append("--stay-paused")
    if options.log_items & {"guest_errors", "unimp"}:
        arguments.append("--warnings")
    if "startup" in options.log_items:
        arguments.append("--startup")
    arguments += ["--health-interval", f"{options.health_interval:g}", "--health-limit", f"{options.health_limit:g}"]
    if any(serial.endpoint and serial.endpoint.wait for serial in options.consoles.values()):
        arguments += ["--start-limit", "inf"]
    elif options.external:
        longest = max(device.wait_seconds for device in options.external)
        arguments += ["--start-limit", f"{longest + _START_SECONDS:g}"]
    return ServiceCommand("monitor", "monitor", "vmesh_services.monitor", tuple(arguments))


def _content(item: FirmwareItem) -> bytes:
    """Raises ImageError."""
    if item.file is None:
        return os.fsencode(item.text)
    flag = f"-fw_cfg {item.name}"
    try:
        with item.file.open("rb") as file:
            content = file.read(_LARGEST_ITEM + 1)
    except OSError as error:
        raise ImageError(f"{flag}: cannot read {item.file}: {error.strerror}") from error
    if len(content) > _LARGEST_ITEM:
        raise ImageError(f"{flag}: expected at most {_LARGEST_ITEM >> 20} MiB, {item.file} has more: give it as a disk")
    return content


def _boot_files(options: RunOptions, scratch: Path) -> tuple[BootFiles, Sequence[Path]]:
    """What to boot, and where else `-bios default` may be found."""
    if options.boots_default_guest:
        default = guest.default(scratch)
        told = f"vmesh.stdin={options.stdin}" if options.stdin else ""
        quiet = "loglevel=1" if options.quiet else ""
        append = " ".join(text for text in (default.append, quiet, told, options.append) if text)
        return BootFiles(default.bios, default.kernel, default.initrd, append, options.dtb), ()
    bios = options.bios or "default"
    fetched = guest.find() if bios == "default" else None
    firmware = (Path(fetched.bios),) if fetched else ()
    return BootFiles(bios, options.kernel, options.initrd, options.append or "", options.dtb), firmware


def _services(
    options: RunOptions, board: Board, booted: BootPlan, machine: MachineDirectory
) -> tuple[ServiceCommand, ...]:
    images = [f"{load.address:#x}={load.path.absolute()}@{load.offset}:{load.size}" for load in booted.loads]
    images += [f"{blob.address:#x}={machine.path / _FILES[blob.name]}" for blob in booted.blobs]
    place = ("--machine", str(machine.path))
    comes_in = bool(options.incoming) or options.load_snapshot is not None
    users = {device.name for device in options.external}  # programs that need not know what waits for a state
    devices = [
        commands.device(part, machine.path, *["--incoming"] * (comes_in and part.name not in users))
        for part in board.carried_by(Carrier.SERVICE)
    ]
    memory = [*place, *commands.memory(board)]
    if options.cpu_apart:
        memory.append("--cached")
    if options.incoming.startswith(uri.HANDOVER):
        memory += ["--adopt", str(machine.path.with_name(options.incoming.removeprefix(uri.HANDOVER)))]
    memory += ["--expect", ",".join(device.name for device in devices)]
    memory += [word for device in options.external for word in ("--place", external.place(device))]
    memory += [word for image in images for word in ("--image", image)]
    cpu = [*place, "--name", "cpu", "--harts", str(board.harts), "--features", board.cpu.option]
    cpu += ["--reset-pc", f"{booted.start_pc:#x}", *commands.cpu(board)]
    if not options.translate:
        cpu += ["--hot-samples", "0"]
    if not options.cache:
        cpu.append("--no-cache")
    if options.perf_map:
        cpu.append("--perf-map")
    cpu += ["--bus-limit", f"{options.bus_limit:g}"]
    if options.paused or comes_in:
        cpu.append("--paused")
    cache = []
    if options.cpu_apart:
        cpu += ["--memory", CACHE]
        cache = [ServiceCommand(CACHE, CACHE, "vmesh_services.memory.cache", (*place, "--name", CACHE))]
    return (
        ServiceCommand("memory", "memory", "vmesh_services.memory", tuple(memory)),
        *cache,
        ServiceCommand("cpu", "cpu", "vmesh_services.cpu", tuple(cpu)),
        *devices,
    )


def _chardev(device: str, serial: Serial, machine: MachineDirectory) -> str:
    """The other end of a serial device, as vmesh/chardev.py specifies it."""
    match serial.kind:
        case "stdio":
            return f"socket:{machine.console(device)}"  # the launcher connects the terminal there
        case "none" | "null":
            return "null"
        case "socket" if serial.endpoint:
            return serial.endpoint.text
        case "file":
            return f"file:{serial.path}"
        case other:
            return other
