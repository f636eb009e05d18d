"""The flags of `vmesh run`, in QEMU's spelling: one table for parsing, for --help and for docs/cli.md.

Source: QEMU's manual page qemu-system-riscv64(1) for names and meanings. What is accepted here means the same there;
what vmesh has no counterpart for is refused by name, never ignored.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vmesh import endpoint, properties
from vmesh.board import virt
from vmesh.cli import gdb, monitors, qemu
from vmesh.endpoint import Endpoint
from vmesh.errors import VmeshError
from vmesh.qdev import added, external, net, share, virtio
from vmesh.qdev.added import Added

MEBIBYTE = 1 << 20
_SIZE = re.compile(
    r"(?P<whole>0[xX][0-9a-fA-F]{1,30}|[0-9]{1,30}(?:\.(?P<fraction>[0-9]{0,30}))?)(?P<suffix>[bkmgtpeBKMGTPE]?)", re.A
)
_RAM_ALIGNMENT = 8 << 10
_LARGEST_RAM = 1 << 50

_ACTIONS: Mapping[str, tuple[str, ...]] = {
    "reboot": ("reset", "shutdown"),
    "shutdown": ("poweroff", "pause"),
    "device-failure": ("pause", "exit-failure"),
}
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


class OptionError(Exception):
    """A flag that cannot be followed; the message is one line that says what was expected."""


@dataclass(frozen=True, slots=True)
class Serial:
    """Where a serial port or a monitor goes: `kind` is stdio, null, none, pty, file (`path`) or socket (`endpoint`)."""

    kind: str = "stdio"
    path: Path | None = None
    endpoint: Endpoint | None = None
    mux: bool = False  # stdio: Ctrl-A keys and the monitor prompt on the same terminal


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


Apply = Callable[[RunOptions, str], RunOptions]


@dataclass(frozen=True, slots=True)
class Option:
    """One flag. `metavar` is empty for a flag without a value; `apply` returns the options with the flag followed."""

    names: tuple[str, ...]
    metavar: str
    help: str
    apply: Apply


def parse(arguments: Sequence[str]) -> RunOptions:
    """The options of a command line. Raises OptionError, and HelpRequested for --help, `-cpu help` and the like.

    A flag may be written with one dash or two, as QEMU allows. Of a flag given twice the last holds.
    """
    options = RunOptions()
    rest = iter(arguments)
    serials = 0
    for argument in rest:
        if argument in ("-h", "-help", "--help"):
            raise properties.HelpRequested(usage())
        if not argument.startswith("-") or argument == "-":
            raise OptionError(
                f"unexpected argument '{argument}': expected a flag; a disk is -drive file=FILE,format=raw"
            )
        name = argument[1:] if argument.startswith("--") else argument
        option = _BY_NAME.get(name) or _anyway(name)
        if option is None:
            raise OptionError(_unknown(name))
        value = ""
        if option.metavar:
            try:
                value = next(rest)
            except StopIteration:
                raise OptionError(f"{name}: expected {option.metavar} after it") from None
        serials += name == "-serial"
        if serials > 1:
            raise OptionError("-serial: expected once, the virt board has one serial port")
        try:
            options = option.apply(options, value)
        except (ValueError, VmeshError) as error:
            raise OptionError(f"{name} {value}: {error}") from error
        except OSError as error:  # of a file that it names
            raise OptionError(f"{name} {value}: {error.strerror}") from error
    _check_together(options)
    return options


def usage() -> str:
    """The text of `vmesh run --help`."""
    lines = [
        "usage: vmesh run [flags]",
        "",
        "Start a RISC-V `virt` machine, one process a service, and end with the guest's exit status. Without -kernel",
        "and -bios it boots the guest that `vmesh guest fetch` has cached.",
        "",
        "flags (QEMU's; one dash or two):",
    ]
    for option in OPTIONS:
        head = "  " + ", ".join(option.names) + (f" {option.metavar}" if option.metavar else "")
        text = textwrap.wrap(option.help, 88)
        if len(head) <= 27:
            lines.append(f"{head:<28}{text[0]}")
            text = text[1:]
        else:
            lines.append(head)
        lines += [" " * 28 + line for line in text]
    taken = f"Of QEMU's flags these are taken too, for what holds anyway: {', '.join(qemu.ANYWAY)}."
    lines += ["", *textwrap.wrap(taken, 116, break_on_hyphens=False)]
    lines += [
        "",
        "With the serial port on a terminal (the default), Ctrl-A h lists the keys, Ctrl-A x ends the machine.",
    ]
    return "\n".join(lines)


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


def _machine(options: RunOptions, text: str) -> RunOptions:
    if text == "help":
        raise properties.HelpRequested("virt                 RISC-V VirtIO board (default)")
    for key, value in properties.parse(text, "type").items():
        match key:
            case "type" if value != "virt":
                raise ValueError("expected virt, the only board there is")
            case "type":
                pass
            case "dumpdtb":
                options = replace(options, dumpdtb=_path(value))
            case "accel":
                options = _accel(options, value)
            case _ if value in _AS_IT_IS.get(key, ()):
                pass
            case _:
                raise ValueError(f"expected virt[,dumpdtb=FILE], got '{key}'")
    return options


_OFF = ("off", "no", "false", "n")
_AS_IT_IS: Mapping[str, Sequence[str]] = {  # properties of QEMU's board that ask for what this one has
    "aclint": _OFF,
    "aia": ("none",),
    "acpi": _OFF,
    "usb": _OFF,
    "graphics": _OFF,
    "mem-merge": ("on", "off"),
    "dump-guest-core": ("on", "off"),
}


def _accel(options: RunOptions, text: str) -> RunOptions:
    if text == "help":
        raise properties.HelpRequested("Accelerators supported:\ntcg (vmesh's own interpreter and translator)")
    for key, value in properties.parse(text, "accel").items():
        if key == "accel" and value != "tcg":
            raise ValueError("expected tcg: harts are emulated, never virtualised")
        if key == "translate":
            options = replace(options, translate=_on_off(key, value))
        elif key == "cache":
            options = replace(options, cache=_on_off(key, value))
        elif key not in ("accel", "thread", "tb-size", "one-insn-per-tb", "split-wx"):
            raise ValueError(f"expected tcg[,translate=on|off][,cache=on|off], got the property '{key}'")
    return options


# QEMU's qapi/qapi-util.c, "qapi_bool_parse"
_SWITCH: Mapping[str, bool] = dict.fromkeys(("on", "yes", "true", "y"), True) | dict.fromkeys(
    ("off", "no", "false", "n"), False
)


def _on_off(key: str, value: str) -> bool:
    if value not in _SWITCH:
        raise ValueError(f"expected {key}=on or {key}=off, got '{value}'")
    return _SWITCH[value]


def _perf_map(options: RunOptions, _text: str) -> RunOptions:
    return replace(options, perf_map=True)


def _smp(options: RunOptions, text: str) -> RunOptions:
    return replace(options, harts=hart_count(text))


def _memory(options: RunOptions, text: str) -> RunOptions:
    return replace(options, memory_bytes=memory_bytes(text))


def _cpu(options: RunOptions, text: str) -> RunOptions:
    return replace(options, cpu=text)


def _bios(options: RunOptions, text: str) -> RunOptions:
    return replace(options, bios=text if text in ("default", "none") else str(_file(text)))


def _kernel(options: RunOptions, text: str) -> RunOptions:
    return replace(options, kernel=_file(text))


def _initrd(options: RunOptions, text: str) -> RunOptions:
    return replace(options, initrd=_file(text))


def _dtb(options: RunOptions, text: str) -> RunOptions:
    return replace(options, dtb=_file(text))


def _append(options: RunOptions, text: str) -> RunOptions:
    return replace(options, append=text)


def _quiet(options: RunOptions, _text: str) -> RunOptions:
    return replace(options, quiet=True)


def _nographic(options: RunOptions, _text: str) -> RunOptions:
    return replace(options, nographic=True)


def _display(options: RunOptions, text: str) -> RunOptions:
    if text != "none":
        raise ValueError("expected none, the board has no display")
    return replace(options, display="none")


def _serial(options: RunOptions, text: str) -> RunOptions:
    kind, _, target = text.partition(":")
    match kind:
        case "stdio" | "null" | "none" | "pty" if not target:
            serial = Serial(kind)
        case "mon" if target == "stdio":
            serial = Serial("stdio", mux=True)
        case "file" if target:
            serial = Serial("file", Path(target).absolute())
        case "unix" if target:
            serial = Serial("socket", endpoint=endpoint.parse(text))
        case _:
            raise ValueError(
                "expected stdio, mon:stdio, null, none, pty, file:PATH or unix:PATH[,server=on][,wait=off]"
            )
    return replace(options, serial=serial)


def _chardev(options: RunOptions, text: str) -> RunOptions:
    found = properties.parse(text, "backend")
    backend, name, path = (found.pop(key, "") for key in ("backend", "id", "path"))
    if not name:
        raise ValueError("expected id=NAME")
    host, port = found.pop("host", ""), found.pop("port", "")
    allowed = {"stdio": {"mux", "signal"}, "socket": {"server", "wait", "nowait"}, "file": set(), "pty": {"mux"}}
    if backend not in (*allowed, "null"):
        raise ValueError(f"expected stdio, socket, file, pty or null, got '{backend}'")
    if unknown := found.keys() - allowed.get(backend, set()):
        raise ValueError(f"no property '{min(unknown)}' of {backend}")
    tcp = backend == "socket" and bool(port)
    if (backend in ("socket", "file") and not tcp) != bool(path):
        raise ValueError(f"{backend}: expected {'path=PATH' if not path else 'no path'}")
    on = {key: _on_off(key, value) for key, value in found.items()}
    if "signal" in on and on["signal"] == on.get("mux", False):
        raise ValueError("expected signal=off with mux=on; without mux Ctrl-C ends the machine")
    if (host or port) and not tcp:
        raise ValueError(f"{backend}: expected host=HOST,port=PORT together, and no path")
    server = on.get("server", False)
    wait = server and on.get("wait", True) and not on.get("nowait", False)
    where = Path(path).absolute() if path else None
    match backend:
        case "socket" if tcp:
            serial = Serial(backend, endpoint=endpoint.tcp(host, port, server=server, wait=wait))
        case "socket":
            serial = Serial(backend, endpoint=Endpoint(where, server=server, wait=wait))
        case _:
            serial = Serial(backend, where, mux=backend == "stdio" and on.get("mux", False))
    return replace(options, chardevs=(*options.chardevs, (name, serial)))


def _monitor(options: RunOptions, text: str) -> RunOptions:
    if text in ("none", "stdio"):
        return replace(options, monitor=text)
    return replace(_add_monitor(options, monitors.parse_device("readline", text)), monitor="none")


def _qmp(options: RunOptions, text: str) -> RunOptions:
    return _add_monitor(options, monitors.parse_device("control", text))


def _qmp_pretty(options: RunOptions, text: str) -> RunOptions:
    return _add_monitor(options, monitors.parse_device("control-pretty", text))


def _mon(options: RunOptions, text: str) -> RunOptions:
    return _add_monitor(options, monitors.parse_mon(properties.parse(text, "chardev")))


def _add_monitor(options: RunOptions, monitor: monitors.Monitor | None) -> RunOptions:
    return options if monitor is None else replace(options, monitor_devices=(*options.monitor_devices, monitor))


def _name(options: RunOptions, text: str) -> RunOptions:
    found = properties.parse(text, "guest")
    if extra := [key for key in found if key not in ("guest", "process", "debug-threads")]:
        raise ValueError(f"expected NAME, got the property '{extra[0]}'")
    return replace(options, name=found.get("guest", ""))


def _paused(options: RunOptions, _text: str) -> RunOptions:
    return replace(options, paused=True)


def _incoming(options: RunOptions, text: str) -> RunOptions:
    from vmesh.machine import MachineError, find  # here, as below: what it imports no other start needs
    from vmesh.migration import uri

    try:
        if text.startswith(uri.HANDOVER):
            find(text.removeprefix(uri.HANDOVER))
        elif text != "defer":
            uri.parse(text)
    except MachineError as error:
        raise ValueError(str(error)) from None
    return replace(options, incoming=text)


def _load_snapshot(options: RunOptions, text: str) -> RunOptions:
    from vmesh.migration import snapshots

    return replace(options, load_snapshot=_file(str(snapshots.path_of(text))))


def _gdb(options: RunOptions, text: str) -> RunOptions:
    return replace(options, gdb=gdb.parse(text))


def _gdb_default(options: RunOptions, _text: str) -> RunOptions:
    return replace(options, gdb=gdb.parse(gdb.DEFAULT))


def _gateway(options: RunOptions, text: str) -> RunOptions:
    from vmesh import remote

    found = remote.parse(text)
    for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
        if not (found.folder / name).is_file():
            raise ValueError(f"expected {name} in {found.folder}")
    return replace(options, gateway=found.text)


def _metrics(options: RunOptions, text: str) -> RunOptions:
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError("expected HOST:PORT, such as 127.0.0.1:9100")
    if not endpoint.is_loopback(host):
        raise ValueError(f"expected an address of this host's loopback, got '{host}': there are no keys for it")
    return replace(options, metrics=f"{host}:{port}")


def _no_reboot(options: RunOptions, _text: str) -> RunOptions:
    return replace(options, reboot=False)


_NEVER: Mapping[str, Sequence[str]] = {  # what this board, as QEMU's, has no device to tell of
    "panic": ("none", "pause", "shutdown", "exit-failure"),
    "watchdog": ("reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"),
}


def _action(options: RunOptions, text: str) -> RunOptions:
    chosen: dict[str, str] = {}
    for part in text.split(","):
        event, _, action = part.partition("=")
        if action in _NEVER.get(event, ()):
            continue
        if action not in _ACTIONS.get(event, ()):
            wanted = ", ".join(f"{name}={'|'.join(actions)}" for name, actions in _ACTIONS.items())
            raise ValueError(f"expected {wanted}; got '{part}'")
        chosen[event.replace("device-failure", "failure")] = action
    return replace(options, actions={**options.actions, **chosen})


def _no_shutdown(options: RunOptions, _text: str) -> RunOptions:
    return _action(options, "shutdown=pause")


def _pid_file(options: RunOptions, text: str) -> RunOptions:
    return replace(options, pid_file=_path(text))


def _log_items(options: RunOptions, text: str) -> RunOptions:
    if text == "help":
        raise properties.HelpRequested("\n".join(f"{item:<14}{what}" for item, what in LOG_ITEMS.items()))
    for item in text.split(","):
        if item in _REFUSED_LOG_ITEMS:
            raise ValueError(f"'{item}' is not traced yet; expected one of {', '.join(LOG_ITEMS)}")
        if item not in LOG_ITEMS:
            raise ValueError(f"expected items of {', '.join(LOG_ITEMS)}, got '{item}'")
    return replace(options, log_items=options.log_items | set(text.split(",")))


def _log_file(options: RunOptions, text: str) -> RunOptions:
    return replace(options, log_file=_path(text))


def _global(options: RunOptions, text: str) -> RunOptions:
    found = properties.parse(text, "")
    if found.keys() == {"driver", "property", "value"}:
        found = {f"{found['driver']}.{found['property']}": found["value"]}
    if list(found) != ["virtio-mmio.force-legacy"]:
        raise ValueError("expected virtio-mmio.force-legacy=off, the only property of a driver that there is")
    if _on_off("force-legacy", found["virtio-mmio.force-legacy"]):
        raise ValueError("expected force-legacy=off, the transport is that of virtio 1 (version 2) only")
    return options


def _snapshot(options: RunOptions, _text: str) -> RunOptions:
    return replace(options, snapshot=True)


def _print_commands(options: RunOptions, _text: str) -> RunOptions:
    return replace(options, print_commands=True)


def _health_interval(options: RunOptions, text: str) -> RunOptions:
    return replace(options, health_interval=_seconds(text))


def _cpu_apart(options: RunOptions, _text: str) -> RunOptions:
    return replace(options, cpu_apart=True)


def _bus_limit(options: RunOptions, text: str) -> RunOptions:
    return replace(options, bus_limit=_seconds(text))


def _health_limit(options: RunOptions, text: str) -> RunOptions:
    return replace(options, health_limit=_seconds(text))


OPTIONS: tuple[Option, ...] = (
    Option(
        ("-machine", "-M"),
        "virt[,dumpdtb=FILE]",
        "The board. dumpdtb writes its device tree to FILE and ends.",
        _machine,
    ),
    Option(
        ("-accel",),
        "tcg[,translate=on|off][,cache=on|off]",
        "Whether hot code is compiled, and kept on disk for later runs (both on by default).",
        _accel,
    ),
    Option(("-cpu",), "MODEL[,ext=on|off]", "The hart's model and extensions; -cpu help lists them.", _cpu),
    Option(("-smp",), "[cpus=]N", f"The number of harts, 1 to {virt.MAX_HARTS}.", _smp),
    Option(
        ("-m",),
        "[size=]SIZE",
        "RAM in MiB, or with a suffix K, M, G. Default: 128M; 512M for the default guest.",
        _memory,
    ),
    Option(("-bios",), "FILE|default|none", "The firmware; default is OpenSBI's.", _bios),
    Option(("-kernel",), "FILE", "The kernel: a Linux Image, an ELF file or a raw image.", _kernel),
    Option(("-initrd",), "FILE", "The initial RAM disk.", _initrd),
    Option(("-append",), "TEXT", "The kernel's command line.", _append),
    Option(("-dtb",), "FILE", "A device tree to use instead of the board's own.", _dtb),
    Option(
        ("-quiet",),
        "",
        "Of the default guest, show only what its commands write; what is piped in is a script for its shell.",
        _quiet,
    ),
    Option(("-nographic",), "", "Serial port and monitor prompt on this terminal; the default.", _nographic),
    Option(
        ("-display",),
        "none",
        "No display; without -nographic and -serial, the serial port then goes nowhere.",
        _display,
    ),
    Option(
        ("-serial",),
        "DEV",
        "Where the serial port goes: stdio (Ctrl-C ends the machine), mon:stdio (Ctrl-C goes to the guest, Ctrl-A keys "
        "work), null, none, pty, file:PATH, unix:PATH[,server=on][,wait=off].",
        _serial,
    ),
    Option(
        ("-monitor",),
        "DEV",
        f"The monitor prompt (HMP): {monitors.USAGE}. On the terminal it is behind Ctrl-A c.",
        _monitor,
    ),
    Option(("-qmp",), "DEV", f"Speak QMP: {monitors.USAGE}.", _qmp),
    Option(("-qmp-pretty",), "DEV", "As -qmp, with answers in lines for people.", _qmp_pretty),
    Option(
        ("-mon",),
        "[chardev=]NAME[,mode=readline|control][,pretty=on|off]",
        "A monitor on a -chardev: HMP, or with mode=control QMP.",
        _mon,
    ),
    Option(("-name",), "NAME", "The machine's name for `vmesh ps` and the like. Default: a random one.", _name),
    Option(("-S",), "", "Do not start the harts; `vmesh resume NAME` or `cont` at the monitor prompt does.", _paused),
    Option(
        ("-incoming",),
        "URI|defer|handover:NAME",
        "Wait for a machine to migrate here: tcp:HOST:PORT[,tls-creds=FOLDER] or unix:PATH; defer: until "
        "`vmesh migrate --incoming` says where; handover:NAME: for a machine of this host "
        "and its RAM (`vmesh upgrade`).",
        _incoming,
    ),
    Option(("-loadvm",), "TAG|FILE", "Begin with a snapshot (vmesh snapshot save).", _load_snapshot),
    Option(("-gdb",), "DEV", f"Let gdb connect, with -S before the guest starts: {gdb.USAGE}.", _gdb),
    Option(("-s",), "", f"-gdb {gdb.DEFAULT}", _gdb_default),
    Option(
        ("-gateway",),
        "tcp:HOST:PORT,tls-creds=FOLDER",
        "Let clients with keys control the machine over TCP, by mutual TLS, beside its Unix socket. FOLDER has "
        "ca-cert.pem, server-cert.pem and server-key.pem.",
        _gateway,
    ),
    Option(("-metrics",), "[HOST]:PORT", "Answer Prometheus over HTTP at a port of the loopback interface.", _metrics),
    Option(("-no-reboot",), "", "End when the guest asks for a reset.", _no_reboot),
    Option(
        ("-action",),
        "EVENT=ACTION,...",
        "What follows when the guest resets (reboot=reset|shutdown), powers off (shutdown=poweroff|pause), or a "
        "device's process dies again and again (device-failure=pause|exit-failure). The first of each is the default.",
        _action,
    ),
    Option(("-no-shutdown",), "", "-action shutdown=pause", _no_shutdown),
    Option(("-pidfile",), "FILE", "Write the number of this process into FILE, which ends with it.", _pid_file),
    Option(("-d",), "ITEMS", "Say these on stderr, comma separated; -d help lists them.", _log_items),
    Option(("-D",), "FILE", "Keep the machine's log, every line of every service, in FILE.", _log_file),
    Option(("-drive",), "file=FILE[,PROP=VALUE]", f"Add a disk: {virtio.DRIVE_USAGE}.", added.drive),
    Option(("-hda", "-hdb", "-hdc", "-hdd"), "FILE", "-drive file=FILE", added.disk),
    Option(("-cdrom",), "FILE", "-drive file=FILE,readonly=on", added.cdrom),
    Option(
        ("-netdev",), "KIND[,PROP=VALUE]", f"What a network card is plugged into: {net.NETDEV_USAGE}.", added.netdev
    ),
    Option(
        ("-nic",),
        "KIND[,PROP=VALUE]",
        f"-netdev and -device {net.DRIVER} in one, with mac=ADDRESS if wanted; none for no card.",
        added.nic,
    ),
    Option(
        ("-global",),
        "virtio-mmio.force-legacy=off",
        "Accepted because guests' instructions for QEMU have it: the virtio transport is never the legacy one.",
        _global,
    ),
    Option(
        ("-object",),
        "rng-random|rng-builtin,id=NAME",
        "Accepted for -device virtio-rng-device,rng=NAME, whose bytes are the host's anyway.",
        added.source,
    ),
    Option(("-snapshot",), "", "Write to temporary files instead of the disks' images.", _snapshot),
    Option(
        ("-chardev",),
        "BACKEND,id=NAME[,...]",
        f"What a -device {virtio.CONSOLE_USAGE} or a -mon is connected to: stdio[,mux=on], "
        "socket,path=PATH[,server=on][,wait=off], file,path=PATH, pty or null; a -mon to "
        "socket,host=127.0.0.1,port=PORT[,server=on][,wait=off] too.",
        _chardev,
    ),
    Option(
        ("-virtfs",), "local,path=FOLDER[,...]", f"Share a folder with the guest: {share.VIRTFS_USAGE}.", added.virtfs
    ),
    Option(("-fsdev",), "local,id=NAME[,...]", f"A folder for -device virtio-9p-device: {share.USAGE}.", added.fsdev),
    Option(
        ("-device",),
        "DRIVER[,PROP=VALUE]",
        f"Add a device (-device help lists them); with {external.USAGE}: a program of your own (docs/devices.md). Its "
        "command gets --machine, --name, --epoch, --lifeline, --base and --irq; without one the machine waits until it "
        "is started by hand.",
        added.device,
    ),
    Option(
        ("-perfmap",), "", "Write /tmp/perf-PID.map, from which perf knows the cpu's and the guest's code.", _perf_map
    ),
    Option(("-print-commands",), "", "Print the command line of each process of the machine and end.", _print_commands),
    Option(
        ("-health-interval",),
        "SECONDS",
        "How often each service is asked whether it is well. Default: 1.",
        _health_interval,
    ),
    Option(
        ("-health-limit",),
        "SECONDS",
        "How long a service may owe the answer before it counts as hung. Default: 10.",
        _health_limit,
    ),
    Option(
        ("-cpu-apart",),
        "",
        "The cpu may be on another host than RAM: a service `cache` beside it takes the pages that it uses.",
        _cpu_apart,
    ),
    Option(
        ("-bus-limit",),
        "SECONDS",
        "How long a hart waits for a device that gives no sign of life before it gets an access fault. Default: 20.",
        _bus_limit,
    ),
)

_SIMILAR = 0.75  # of 1: another name than what was meant would mislead

_BY_NAME: Mapping[str, Option] = {name: option for option in OPTIONS for name in option.names}


def _check_together(options: RunOptions) -> None:
    """Raises OptionError for flags that make no sense together."""
    try:
        options.parts()
    except ValueError as error:
        raise OptionError(str(error)) from error
    _check_consoles(options)
    if options.initrd is not None and options.kernel is None:
        raise OptionError("-initrd: expected -kernel with it")
    if options.append is not None and options.kernel is None and not options.boots_default_guest:
        raise OptionError("-append: expected -kernel with it")
    if (
        options.monitor == "stdio"
        and options.serial is not None
        and options.serial.kind == "stdio"
        and not options.serial.mux
    ):
        raise OptionError(
            "-monitor stdio -serial stdio: expected one of them; -serial mon:stdio puts both on the terminal"
        )
    if options.quiet and (not options.boots_default_guest or options.incoming or options.load_snapshot is not None):
        raise OptionError("-quiet: expected the default guest: no -kernel, -bios, -incoming or -loadvm")
    if options.quiet and options.terminal[1].kind != "stdio":
        raise OptionError("-quiet: expected the serial port on this terminal")
    if options.incoming and options.load_snapshot is not None:
        raise OptionError("-incoming -loadvm: expected one of them")
    if options.cpu_apart and (options.incoming or options.load_snapshot is not None):
        raise OptionError("-cpu-apart: expected neither -incoming nor -loadvm, such a machine cannot come in")
    if options.dtb is not None and options.dumpdtb is not None:
        raise OptionError("-dtb -machine dumpdtb=: expected one of them, there is nothing to dump with -dtb")


def _check_consoles(options: RunOptions) -> None:
    names = [name for name, _ in options.chardevs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise OptionError(f"-chardev id={twice[0]}: expected each id once")
    used = list(virtio.consoles(options.virtio_devices).values())
    for name in used:
        if name not in names:
            raise OptionError(f"-device {virtio.CONSOLE}: expected chardev=NAME of a -chardev, there is no '{name}'")
        if used.count(name) > 1:
            raise OptionError(f"-chardev id={name}: expected one device for it")
    if tcp := [name for name in used if (end := dict(options.chardevs)[name].endpoint) and not end.path]:
        raise OptionError(f"-chardev id={tcp[0]}: expected a -mon for host= and port=, a console cannot use it")
    _check_monitors(options, used)
    on_terminal = sum(serial.kind == "stdio" for serial in options.consoles.values())
    if on_terminal + sum(monitor.endpoint is None for monitor in options.doors) > 1:
        raise OptionError("stdio: the terminal is taken; -serial null (or -display none) lets go of it")


def _check_monitors(options: RunOptions, used: Sequence[str]) -> None:
    named = dict(options.chardevs)
    seen = set(used)
    for name in (monitor.chardev for monitor in options.monitor_devices if monitor.chardev):
        if name not in named:
            raise OptionError(f"-mon: expected chardev=NAME of a -chardev, there is no '{name}'")
        if name in seen:
            raise OptionError(f"-chardev id={name}: expected one user for it")
        if named[name].kind not in ("stdio", "socket"):
            raise OptionError(f"-mon chardev={name}: expected a -chardev socket or stdio")
        seen.add(name)


def _anyway(name: str) -> Option | None:
    """A flag of QEMU's that asks for what holds anyway."""
    flag = qemu.ANYWAY.get(name)
    if flag is None:
        return None

    def apply(options: RunOptions, text: str) -> RunOptions:
        flag.check(text)
        return options

    return Option((name,), flag.expected, "", apply)


def _unknown(name: str) -> str:
    if hint := qemu.HINTS.get(name):
        return f"no flag '{name}': {hint}"
    close = difflib.get_close_matches(name, _BY_NAME, n=2, cutoff=_SIMILAR)
    hint = f"did you mean {' or '.join(close)}?" if close else "vmesh run --help lists the flags"
    return f"unknown flag '{name}': {hint}"


def _path(text: str) -> Path:
    if not text:
        raise ValueError("expected a file name")
    return Path(text).absolute()


def _file(text: str) -> Path:
    path = _path(text)
    if not path.exists():
        raise ValueError("expected a file, there is none of that name")
    if path.is_dir():
        raise ValueError("expected a file, this is a directory")
    return path


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise ValueError("expected a number of seconds above 0")
    return seconds
