"""What the text behind a flag means. Each function raises ValueError, which says what was expected."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from vmesh import endpoint, properties
from vmesh.board import cpu_model, virt
from vmesh.board.errors import CpuModelError
from vmesh.cli.flags.options import FirmwareItem, Serial
from vmesh.endpoint import Endpoint

_SIZE = re.compile(
    r"(?P<whole>0[xX][0-9a-fA-F]{1,30}|[0-9]{1,30}(?:\.(?P<fraction>[0-9]{0,30}))?)(?P<suffix>[bkmgtpeBKMGTPE]?)", re.A
)
_ITEM_NAME_BYTES = 55  # QEMU's hw/nvram/fw_cfg.h, FW_CFG_MAX_FILE_PATH without its NUL
_RAM_ALIGNMENT = 8 << 10
_LARGEST_RAM = 1 << 50
LOG_ITEMS: Mapping[str, str] = {
    "startup": "how long each phase of the start took",
    "guest_errors": "the services' warnings: what the guest did wrong, what was refused",
    "unimp": "as guest_errors",
}
_REFUSED_LOG_ITEMS = {
    "in_asm",
    "out_asm",
    "op",
    "int",
    "exec",
    "cpu",
    "fpu",
    "mmu",
    "pcall",
    "cpu_reset",
    "page",
    "nochain",
}

# QEMU's qapi/qapi-util.c, "qapi_bool_parse"
_SWITCH: Mapping[str, bool] = dict.fromkeys(("on", "yes", "true", "y"), True) | dict.fromkeys(
    ("off", "no", "false", "n"), False
)


def memory_bytes(text: str) -> int:
    """Bytes of RAM from QEMU's -m text. Raises ValueError.

    As QEMU reads it (util/cutils.c, "do_strtosz"; softmmu/vl.c): MiB without a suffix, or B, K, M, G, T, P, E; a
    fraction, or hexadecimal; rounded up to 8 KiB.
    """
    found = properties.parse(text, "size")
    found.pop("slots", "")  # as on QEMU's board: nothing can be put into them
    if most := found.pop("maxmem", ""):
        memory_bytes(most)
    if extra := [key for key in found if key != "size"]:
        raise ValueError(f"expected a size, got '{extra[0]}'")
    size = _SIZE.fullmatch(found.get("size", ""))
    if size is None or (size["suffix"].upper() == "B" and size["fraction"]):
        raise ValueError("expected a size such as 512M, 1.5G or 0x200")
    factor = 1 << 10 * "BKMGTPE".index(size["suffix"].upper() or "M")
    whole, fraction = size["whole"].partition(".")[0], size["fraction"]
    amount = int(whole, 16 if whole[1:2] in ("x", "X") else 10) * factor
    if fraction:
        amount += int(fraction) * factor // 10 ** len(fraction)
    if not amount:  # QEMU has its default then; whoever computed it did not mean that
        raise ValueError("expected more than 0 (leave -m out for the default)")
    if amount > _LARGEST_RAM:
        raise ValueError(f"expected at most {_LARGEST_RAM >> 40}T: the board has no more addresses")
    return -(-amount // _RAM_ALIGNMENT) * _RAM_ALIGNMENT


def hart_count(text: str) -> int:
    """Harts from QEMU's -smp text. Raises ValueError."""
    numbers: dict[str, int] = {}
    for key, value in properties.parse(text, "cpus").items():
        if key not in ("cpus", "maxcpus", "sockets", "dies", "clusters", "cores", "threads"):
            raise ValueError(f"expected cpus, maxcpus, sockets, dies, clusters, cores or threads, got '{key}'")
        if not (value.isascii() and value.isdecimal()) or int(value) < 1:
            raise ValueError(f"expected a number of at least 1, got '{value}'")
        numbers[key] = int(value)
    product = 1
    for key in ("sockets", "dies", "clusters", "cores", "threads"):
        product *= numbers.get(key, 1)
    topology = bool(numbers.keys() - {"cpus", "maxcpus"})
    cpus = numbers.get("cpus", product if topology else numbers.get("maxcpus", 1))
    if numbers.get("maxcpus", cpus) != cpus:  # QEMU's board takes more, and then has no way to add them
        raise ValueError(f"expected maxcpus equal to cpus, {cpus}: harts cannot be added while the machine runs")
    if topology and cpus % product:
        raise ValueError(f"expected cpus to be a multiple of sockets*cores*threads, {cpus} is none of {product}")
    if cpus > virt.MAX_HARTS:
        raise ValueError(f"expected at most {virt.MAX_HARTS} harts")
    return cpus


def cpu(text: str) -> str:
    """A CPU model, as vmesh/board/cpu_model.py reads it."""
    if text == "help":
        raise properties.HelpRequested(cpu_model.help_text())
    try:
        cpu_model.parse(text)
    except CpuModelError as error:
        raise ValueError(str(error)) from error
    return text


def on_off(key: str, value: str) -> bool:
    if value not in _SWITCH:
        raise ValueError(f"expected {key}=on or {key}=off, got '{value}'")
    return _SWITCH[value]


def path(text: str) -> Path:
    if not text:
        raise ValueError("expected a file name")
    return Path(text).absolute()


def file(text: str) -> Path:
    found = path(text)
    if not found.exists():
        raise ValueError("expected a file, there is none of that name")
    if found.is_dir():
        raise ValueError("expected a file, this is a directory")
    return found


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise ValueError("expected a number of seconds above 0")
    return value


def firmware(text: str) -> str:
    return text if text in ("default", "none") else str(file(text))


def firmware_item(text: str) -> FirmwareItem:
    """An item of fw_cfg, as QEMU reads it (softmmu/vl.c, "parse_fw_cfg"). Raises ValueError."""
    found = properties.parse(text, "name")
    if unknown := found.keys() - {"name", "file", "string"}:
        raise ValueError(f"no property '{min(unknown)}': expected [name=]NAME and one of file=PATH and string=TEXT")
    name, path, string = (found.get(key, "") for key in ("name", "file", "string"))
    if not name or bool(path) == bool(string):
        raise ValueError("expected a name and exactly one of file=PATH and string=TEXT, none of them empty")
    if (size := len(os.fsencode(name))) > _ITEM_NAME_BYTES:
        raise ValueError(f"name too long: expected at most {_ITEM_NAME_BYTES} bytes, got {size}")
    if not name.isprintable():
        raise ValueError("expected a name of printable characters")
    if name in virt.FW_CFG_FILES:
        raise ValueError("expected another name, the board has an item of this one")
    return FirmwareItem(name, file(path) if path else None, string)


def display(text: str) -> str:
    if text != "none":
        raise ValueError("expected none, the board has no display")
    return text


def serial(text: str) -> Serial:
    kind, _, target = text.partition(":")
    match kind:
        case "stdio" | "null" | "none" | "pty" if not target:
            return Serial(kind)
        case "mon" if target == "stdio":
            return Serial("stdio", mux=True)
        case "file" if target:
            return Serial("file", Path(target).absolute())
        case "unix" if target:
            return Serial("socket", endpoint=endpoint.parse(text))
        case _:
            raise ValueError(
                "expected stdio, mon:stdio, null, none, pty, file:PATH or unix:PATH[,server=on][,wait=off]"
            )


def chardev(text: str) -> tuple[str, Serial]:
    """Its id, and where it leads."""
    found = properties.parse(text, "backend")
    backend, name, place = (found.pop(key, "") for key in ("backend", "id", "path"))
    if not name:
        raise ValueError("expected id=NAME")
    host, port = found.pop("host", ""), found.pop("port", "")
    allowed = {"stdio": {"mux", "signal"}, "socket": {"server", "wait", "nowait"}, "file": set(), "pty": {"mux"}}
    if backend not in (*allowed, "null"):
        raise ValueError(f"expected stdio, socket, file, pty or null, got '{backend}'")
    if unknown := found.keys() - allowed.get(backend, set()):
        raise ValueError(f"no property '{min(unknown)}' of {backend}")
    tcp = backend == "socket" and bool(port)
    if (backend in ("socket", "file") and not tcp) != bool(place):
        raise ValueError(f"{backend}: expected {'path=PATH' if not place else 'no path'}")
    on = {key: on_off(key, value) for key, value in found.items()}
    if "signal" in on and on["signal"] == on.get("mux", False):
        raise ValueError("expected signal=off with mux=on; without mux Ctrl-C ends the machine")
    if (host or port) and not tcp:
        raise ValueError(f"{backend}: expected host=HOST,port=PORT together, and no path")
    server = on.get("server", False)
    wait = server and on.get("wait", True) and not on.get("nowait", False)
    where = Path(place).absolute() if place else None
    match backend:
        case "socket" if tcp:
            made = Serial(backend, endpoint=endpoint.tcp(host, port, server=server, wait=wait))
        case "socket":
            made = Serial(backend, endpoint=Endpoint(where, server=server, wait=wait))
        case _:
            made = Serial(backend, where, mux=backend == "stdio" and on.get("mux", False))
    return name, made


def name(text: str) -> str:
    from vmesh.machine import MachineError, check_name  # here, as below: what it imports no other start needs

    found = properties.parse(text, "guest")
    if extra := [key for key in found if key not in ("guest", "process", "debug-threads")]:
        raise ValueError(f"expected NAME, got the property '{extra[0]}'")
    chosen = found.get("guest", "")
    try:
        if chosen or not found:  # without one, and with other properties: a random one
            check_name(chosen)
    except MachineError as error:
        raise ValueError(str(error)) from error
    return chosen


def incoming(text: str) -> str:
    from vmesh.machine import MachineError, find
    from vmesh.migration import uri

    try:
        if text.startswith(uri.HANDOVER):
            find(text.removeprefix(uri.HANDOVER))
        elif text != "defer":
            uri.parse(text)
    except MachineError as error:
        raise ValueError(str(error)) from None
    return text


def snapshot(text: str) -> Path:
    from vmesh.migration import snapshots

    return file(str(snapshots.path_of(text)))


def gateway(text: str) -> str:
    from vmesh import remote

    found = remote.parse(text)
    for part in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
        if not (found.folder / part).is_file():
            raise ValueError(f"expected {part} in {found.folder}")
    return found.text


def metrics(text: str) -> str:
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError("expected HOST:PORT, such as 127.0.0.1:9100")
    if not endpoint.is_loopback(host):
        raise ValueError(f"expected an address of this host's loopback, got '{host}': there are no keys for it")
    return f"{host}:{port}"


def log_items(text: str) -> frozenset[str]:
    if text == "help":
        raise properties.HelpRequested("\n".join(f"{item:<14}{what}" for item, what in LOG_ITEMS.items()))
    for item in text.split(","):
        if item in _REFUSED_LOG_ITEMS:
            raise ValueError(f"'{item}' is not traced yet; expected one of {', '.join(LOG_ITEMS)}")
        if item not in LOG_ITEMS:
            raise ValueError(f"expected items of {', '.join(LOG_ITEMS)}, got '{item}'")
    return frozenset(text.split(","))


def never_legacy(text: str) -> None:
    """-global: the transport is that of virtio 1 (version 2) only."""
    found = properties.parse(text, "")
    if found.keys() == {"driver", "property", "value"}:
        found = {f"{found['driver']}.{found['property']}": found["value"]}
    if list(found) != ["virtio-mmio.force-legacy"]:
        raise ValueError("expected virtio-mmio.force-legacy=off, the only property of a driver that there is")
    if on_off("force-legacy", found["virtio-mmio.force-legacy"]):
        raise ValueError("expected force-legacy=off, the transport is that of virtio 1 (version 2) only")
