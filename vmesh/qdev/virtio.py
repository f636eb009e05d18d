"""`-drive`, `-snapshot` and `-device virtio-*-device`: from the flags to the virtio-mmio slots and the parts there.

Source: QEMU's manual page for the properties; `info qtree` for which slot a device gets. A new kind of device is an
entry of DRIVERS.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from vmesh import plain
from vmesh.board import virt
from vmesh.board.parts import Part
from vmesh.qdev import names, net, share

DRIVE_USAGE = (
    "file=FILE|nbd:...[,format=raw|qcow2][,if=virtio|none][,id=NAME][,readonly=on|off][,snapshot=on|off]"
    "[,cache=writeback|writethrough|unsafe][,discard=ignore|unmap]"
)

CONSOLE = "virtconsole"
CONSOLE_USAGE = f"{CONSOLE},chardev=NAME"
SERIAL = "virtio-serial-device"
BALLOON = "virtio-balloon-device"

_OURS = (*names.TAKEN, *virt.OWN_DEVICES)
_BUSES = [bus.name for bus in virt.TRANSPORTS]
_CACHES = {  # of QEMU's kinds, whether the guest is told of a cache; the host's file cache is always used
    "writeback": "writeback",
    "none": "writeback",
    "writethrough": "writethrough",
    "directsync": "writethrough",
    "unsafe": "unsafe",
}
_SERVERS = ("nbd:", "nbd://", "nbd+tcp://", "nbd+unix://")
_NOT_RAW = {b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"vhdxfile": "vhdx", b"conectix": "vpc", b"QED\0": "qed"}


@dataclass(frozen=True, slots=True)
class Drive:
    """A disk of the host, as -drive describes it. `snapshot` is None where -snapshot decides."""

    file: str
    name: str = ""
    format: str = "raw"
    interface: str = ""  # virtio, none (it waits for a -device that names it), or whichever is needed
    read_only: bool = False
    snapshot: bool | None = None
    cache: str = "writeback"
    discard: bool = False


@dataclass(frozen=True, slots=True)
class DeviceOption:
    """A virtio device, as -device describes it; `slot` is -1 where it may go anywhere."""

    driver: str
    name: str = ""
    slot: int = -1
    packed: bool = False
    properties: Mapping[str, str] | None = None  # those of its driver


@dataclass(frozen=True, slots=True)
class Backends:
    """What devices stand on, by name, and a number for each network card."""

    drives: Mapping[str, Drive]
    netdevs: Mapping[str, net.Netdev]
    shares: Mapping[str, share.Share]
    cards: Iterator[int]


@dataclass(frozen=True, slots=True)
class Driver:
    """A kind of device: its service, its properties, and what of its command line follows from them.

    `arguments` gets the device's properties and what they may name. It raises ValueError.
    """

    kind: str
    short: str  # what it is called without id=, with a number
    properties: tuple[str, ...]
    usage: str
    arguments: Callable[[Mapping[str, str], Backends], list[str]]


def parse_drive(properties: Mapping[str, str]) -> Drive:
    """The disk of a -drive. Raises ValueError."""
    known = (
        "file",
        "format",
        "if",
        "id",
        "media",
        "index",
        "readonly",
        "read-only",
        "snapshot",
        "cache",
        "aio",
        "discard",
    )
    if unknown := [key for key in properties if key not in known]:
        raise ValueError(f"no property '{unknown[0]}'; expected {DRIVE_USAGE}")
    if not properties.get("file"):
        raise ValueError("expected file=FILE, the disk's image")
    interface = _one_of(properties, "if", "virtio", "virtio", "none") if "if" in properties else ""
    disc = _one_of(properties, "media", "disk", "disk", "cdrom") == "cdrom"
    _one_of(properties, "aio", "threads", "threads", "native", "io_uring")  # requests are done one after the other
    format_ = _one_of(properties, "format", "raw", "raw", "qcow2")
    name = properties.get("id", "")
    if name and not names.is_name(name):
        raise ValueError(f"expected {names.USAGE}, got '{name}'")
    file = properties["file"]
    if not file.startswith(_SERVERS):
        file = str(Path(file).absolute())
        _check_file(Path(file), known_raw="format" in properties)
    elif format_ != "raw":
        raise ValueError("expected format=raw: what an NBD server gives is the disk itself")
    if format_ != "raw" and shutil.which("qemu-nbd") is None:
        raise ValueError(f"format={format_} needs qemu-nbd, which is not installed (Debian: qemu-utils)")
    return Drive(
        file,
        name,
        format_,
        interface,
        disc or _on(properties, "readonly") or _on(properties, "read-only"),
        _on(properties, "snapshot") if "snapshot" in properties else None,
        _CACHES[_one_of(properties, "cache", "writeback", *_CACHES)],
        _one_of(properties, "discard", "ignore", "ignore", "unmap", "off", "on") in ("unmap", "on"),
    )


def parse_device(driver: str, properties: Mapping[str, str]) -> DeviceOption:
    """The device of a -device whose driver is one of DRIVERS. Raises ValueError."""
    known = DRIVERS[driver]
    own = {key: value for key, value in properties.items() if key in known.properties}
    others = properties.keys() - own.keys() - {"id", "bus", "packed"}
    if others:
        raise ValueError(f"no property '{min(others)}'; expected {usage(driver)}")
    name = properties.get("id", "")
    if (name and not names.is_name(name)) or name in _OURS:
        raise ValueError(f"expected {names.USAGE}, and none of {', '.join(_OURS)}, got '{name}'")
    bus = properties.get("bus", "")
    if "bus" in properties and bus not in _BUSES:
        raise ValueError(f"expected bus={_BUSES[0]} to {_BUSES[-1]}, got '{bus}'")
    return DeviceOption(driver, name, _BUSES.index(bus) if bus else -1, _on(properties, "packed"), own)


def usage(driver: str) -> str:
    """How the driver's -device is written."""
    return f"{driver}{DRIVERS[driver].usage}[,id=NAME][,bus=virtio-mmio-bus.N][,packed=on|off]"


def parts(
    devices: Sequence[DeviceOption],
    drives: Sequence[Drive],
    netdevs: Sequence[net.Netdev],
    shares: Sequence[share.Share],
    snapshot: bool,
    there: Mapping[int, str] | None = None,
    cards: int = 0,
) -> dict[int, Part]:
    """The devices by slot. Raises ValueError for what does not fit together.

    As on QEMU's board: first the devices of -device, then those that if=virtio makes, each in the last slot free. A
    drive without if= gets its device from here unless a -device names it.
    `there` are the names of devices that have their slots already, `cards` how many network cards are among them.
    """
    there = there or {}
    drives = [replace(drive, snapshot=snapshot if drive.snapshot is None else drive.snapshot) for drive in drives]
    named: dict[str, Drive] = {}
    wanted = list(devices)
    taken = {(device.properties or {}).get("drive") for device in devices}
    for number, drive in enumerate(drives):
        name = drive.name or f"drive{number}"
        if name in named:
            raise ValueError(f"-drive id={name}: expected each id once")
        named[name] = drive
        if drive.interface == "virtio" or (not drive.interface and name not in taken):
            wanted.append(DeviceOption("virtio-blk-device", properties={"drive": name}))
    if len(wanted) + len(there) > len(_BUSES):
        raise ValueError(f"expected at most {len(_BUSES)} virtio devices, got {len(wanted) + len(there)}")
    if sum(device.driver == BALLOON for device in wanted) > 1:
        raise ValueError(f"-device {BALLOON}: expected one, which is the machine's balloon")
    backends = Backends(
        named, {netdev.name: netdev for netdev in netdevs}, {shared.name: shared for shared in shares}, count(cards)
    )
    if len(backends.netdevs) < len(netdevs):
        raise ValueError("-netdev id=: expected each id once")
    if len(backends.shares) < len(shares):
        raise ValueError("-fsdev id=: expected each id once")
    used: set[tuple[str, str]] = set()
    slots: dict[int, Part] = {}
    named_slots = {each.slot for each in wanted} | there.keys()
    free = [slot for slot in reversed(range(len(_BUSES))) if slot not in named_slots]
    names = {device.name for device in wanted} | set(there.values())
    if twice := [name for name in names if name and [device.name for device in wanted].count(name) > 1]:
        raise ValueError(f"-device id={twice[0]}: expected each id once")
    for device in wanted:
        driver = DRIVERS[device.driver]
        slot = device.slot if device.slot >= 0 else free.pop(0)
        if slot in slots or slot in there:
            raise ValueError(f"bus={_BUSES[slot]}: expected one device on it")
        name = device.name or next(
            free_name for number in range(len(names) + 1) if (free_name := f"{driver.short}{number}") not in names
        )
        names.add(name)
        own = device.properties or {}
        for backend in own.items() & {(key, own.get(key, "")) for key in ("drive", "netdev")}:
            if backend in used:
                raise ValueError(f"{backend[0]} '{backend[1]}': expected one device for it")
            used.add(backend)
        arguments = (*driver.arguments(own, backends), *["--packed"] * device.packed)
        bus = virt.TRANSPORTS[slot]
        slots[slot] = Part(name, driver.kind, bus.range, bus.interrupt, arguments=arguments, bus=bus.name)
    if idle := [netdev.name for netdev in netdevs if ("netdev", netdev.name) not in used]:
        raise ValueError(f"-netdev id={idle[0]}: expected a -device with netdev={idle[0]}")
    return slots


def _block(properties: Mapping[str, str], backends: Backends) -> list[str]:
    name = properties.get("drive", "")
    drive = backends.drives.get(name)
    if drive is None:
        raise ValueError(
            f"virtio-blk-device: expected drive=NAME of a -drive with id=NAME, there is no '{name}'"
            if name
            else "virtio-blk-device: expected drive=NAME of a -drive with if=none,id=NAME"
        )
    serial = properties.get("serial", "")
    if len(serial.encode()) > 20:
        raise ValueError(f"serial={serial}: expected at most 20 bytes")
    queues = properties.get("num-queues", "1")
    if not (queues.isascii() and queues.isdecimal() and 1 <= int(queues) <= 16):
        raise ValueError(f"num-queues={queues}: expected 1 to 16")
    arguments = ["--file", drive.file, "--format", drive.format, "--cache", drive.cache, "--num-queues", queues]
    arguments += ["--discard", "unmap" if drive.discard else "ignore"]
    arguments += ["--read-only"] * drive.read_only
    if drive.snapshot and not drive.read_only:
        from vmesh import elsewhere  # here: what it imports no other start needs

        arguments += ["--snapshot", str(elsewhere.default_place())]
    return arguments + (["--serial", serial] if serial else [])


def _net(properties: Mapping[str, str], backends: Backends) -> list[str]:
    return net.card_arguments(properties, backends.netdevs, next(backends.cards))


def _share(properties: Mapping[str, str], backends: Backends) -> list[str]:
    name = properties.get("fsdev", "")
    shared = backends.shares.get(name)
    if shared is None:
        raise ValueError(f"virtio-9p-device: expected fsdev=NAME of an -fsdev with id=NAME, got '{name}'")
    return [*shared.arguments, "--tag", share.check_tag(properties.get("mount_tag", ""))]


def add_console(devices: Sequence[DeviceOption], properties: Mapping[str, str]) -> tuple[DeviceOption, ...]:
    """The devices, one of which got the port of a `-device virtconsole`. Raises ValueError."""
    if unknown := properties.keys() - {"chardev", "id", "bus", "nr", "name"}:
        raise ValueError(f"no property '{min(unknown)}'; expected {CONSOLE_USAGE}")
    if not properties.get("chardev"):
        raise ValueError("expected chardev=NAME of a -chardev")
    bus = properties.get("bus", "").removesuffix(".0")
    for place, device in enumerate(devices):
        if device.driver == SERIAL and not device.properties and bus in ("", device.name):
            name = device.name or f"console{place}"
            changed = replace(device, name=name, properties={"chardev": properties["chardev"]})
            return (*devices[:place], changed, *devices[place + 1 :])
    raise ValueError(f"expected a -device {SERIAL} before it, with no port yet")


def consoles(devices: Sequence[DeviceOption]) -> dict[str, str]:
    """The chardev of each serial device, by the device's name."""
    return {
        device.name: device.properties["chardev"] for device in devices if device.driver == SERIAL and device.properties
    }


def _console(properties: Mapping[str, str], _backends: Backends) -> list[str]:
    if "chardev" not in properties:
        raise ValueError(f"{SERIAL}: expected a -device {CONSOLE_USAGE} behind it")
    return ["--chardev", "kept"]


DRIVERS: Mapping[str, Driver] = {
    "virtio-blk-device": Driver(
        "virtio-blk", "blk", ("drive", "serial", "num-queues"), ",drive=NAME[,serial=TEXT][,num-queues=N]", _block
    ),
    net.DRIVER: Driver("virtio-net", "net", net.CARD_PROPERTIES, net.CARD_USAGE, _net),
    "virtio-rng-device": Driver("virtio-rng", "rng", ("rng",), "[,rng=NAME]", lambda _properties, _backends: []),
    SERIAL: Driver("virtio-console", "console", (), "", _console),
    BALLOON: Driver("virtio-balloon", "balloon", (), "", lambda _properties, _backends: []),
    "virtio-9p-device": Driver("virtio-9p", "share", ("fsdev", "mount_tag"), ",fsdev=NAME,mount_tag=TAG", _share),
}


def _check_file(file: Path, *, known_raw: bool) -> None:
    """Without format=, an image that says itself what it is, is not taken for a raw one. Raises ValueError."""
    if not file.exists():
        raise ValueError("expected an image file, there is none of that name")
    if file.is_dir():
        raise ValueError("expected an image file, this is a directory")
    if known_raw:
        return
    try:
        with open(plain.open_file(file, os.O_RDONLY, disk=True), "rb") as image:
            begin = image.read(8)
    except OSError as error:
        raise ValueError(f"the image cannot be read: {error.strerror}") from error
    for magic, name in _NOT_RAW.items():
        if begin.startswith(magic):
            raise ValueError(f"expected format=, this says it is {name}; format=raw takes its bytes as they are")


def _one_of(properties: Mapping[str, str], key: str, default: str, *choices: str) -> str:
    value = properties.get(key, default)
    if value not in choices:
        raise ValueError(f"expected {key}={' or '.join(choices)}, got '{value}'")
    return value


def _on(properties: Mapping[str, str], key: str) -> bool:
    return _one_of(properties, key, "off", "on", "off") == "on"
