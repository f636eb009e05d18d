"""QEMU's flags that this board has no use for.

Those that ask for what holds anyway are taken, as command lines written for QEMU have them (ANYWAY). For the others
there is a hint what to do instead (HINTS): a similar name of ours would mislead.
Source: qemu-system-riscv64(1), 7.2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Anyway:
    """A flag that changes nothing. `values`: the ones that ask for what holds; None where there is no value."""

    values: re.Pattern[str] | None
    expected: str = ""

    def check(self, value: str) -> None:
        """Raises ValueError for a value that asks for something else."""
        if self.values is not None and not self.values.fullmatch(value):
            raise ValueError(f"expected {self.expected}")


def _anyway(pattern: str, expected: str) -> Anyway:
    return Anyway(re.compile(pattern), expected)


_OFF = "(off|no|false|n)"
_UUID = "-".join(f"[0-9a-fA-F]{{{digits}}}" for digits in (8, 4, 4, 4, 12))
_BOOT = r"(order=)?c|menu=off|strict=\w+"

ANYWAY: Mapping[str, Anyway] = {
    "-nodefaults": Anyway(None),
    "-no-user-config": Anyway(None),
    "-boot": _anyway(f"({_BOOT})(,({_BOOT}))*", "nothing but the default order: what is booted, -kernel and -bios say"),
    "-k": _anyway(".+", "a keyboard's layout"),
    "-net": _anyway("none", "none; a card and its network are -nic user"),
    "-msg": _anyway(r"(timestamp|guest-name)(=\w+)?", "timestamp=on|off"),
    "-overcommit": _anyway(f"(mem-lock|cpu-pm)={_OFF}(,(mem-lock|cpu-pm)={_OFF})*", "mem-lock=off: RAM can be swapped"),
    "-parallel": _anyway("none", "none, the board has no parallel port"),
    "-rtc": _anyway("(base=)?utc(,clock=host)?|clock=host(,base=utc)?", "base=utc,clock=host, the clock is the host's"),
    "-sandbox": _anyway(f"{_OFF}.*", "off: there is no filter of system calls"),
    "-uuid": _anyway(_UUID, "a UUID, which nothing shows to the guest"),
    "-vga": _anyway("none", "none, the board has no display"),
    "-vnc": _anyway("none", "none, the board has no display"),
    "-watchdog-action": _anyway(
        "reset|shutdown|poweroff|inject-nmi|pause|debug|none", "an action; the board has no watchdog"
    ),
}

_DISPLAY = "the board has no display; -nographic puts the serial port on the terminal"
_USB = "the board has no USB"
_DRIVES = "the board has no such drive; a disk is -drive file=FILE,format=raw"
_NOT_HERE = "the board has none, as QEMU's `virt` for RISC-V"

HINTS: Mapping[str, str] = {
    "-redir": "ports are forwarded by -nic user,hostfwd=tcp::PORT-:PORT",
    "-usb": _USB,
    "-usbdevice": _USB,
    "-blockdev": "a disk for a -device is -drive file=FILE,format=raw,if=none,id=NAME",
    "-fda": _DRIVES,
    "-fdb": _DRIVES,
    "-sd": _DRIVES,
    "-mtdblock": _DRIVES,
    "-pflash": _DRIVES,
    "-icount": "the guest's time is the host's; instructions are not counted",
    "-semihosting": "there is none; the guest ends the machine with a status by the test device at 0x100000",
    "-semihosting-config": "there is none; the guest ends the machine with a status by the test device at 0x100000",
    "-singlestep": "-accel tcg,translate=off runs the guest in the interpreter; -gdb steps it",
    "-tb-size": "compiled code has its own limits; -accel tcg says what can be chosen",
    "-plugin": "vmesh trace NAME records what the guest does on the bus, -gdb and vmesh top look at the harts",
    "-trace": "vmesh trace NAME records what the guest does on the bus",
    "-enable-kvm": "harts are emulated, never virtualised",
    "-daemonize": "vmesh deploy NAME FLAGS runs a machine in the background",
    "-mem-path": "RAM is a file in $VMESH_RUNTIME, or in /dev/shm",
    "-mem-prealloc": "RAM is taken from the host as the guest uses it",
    "-numa": "RAM is one node",
    "-smbios": _NOT_HERE,
    "-acpitable": _NOT_HERE,
    "-tpmdev": _NOT_HERE,
    "-audio": "the board has no sound",
    "-audiodev": "the board has no sound",
    "-soundhw": "the board has no sound",
    "-spice": _DISPLAY,
    "-sdl": _DISPLAY,
    "-gtk": _DISPLAY,
    "-curses": _DISPLAY,
    "-full-screen": _DISPLAY,
    "-g": _DISPLAY,
    "-echr": "the key is Ctrl-A",
    "-L": "-bios FILE names the firmware",
    "-version": "it is vmesh --version",
    "-readconfig": "flags are on the command line only",
    "-writeconfig": "flags are on the command line only",
    "-set": "properties are given where the device is: -device DRIVER,PROP=VALUE",
    "-qtest": "tests speak QMP (-qmp) and the gateway",
    "-runas": "start vmesh as the user it is to run as",
    "-chroot": "vmesh run in a container is docs/deploy.md",
}
