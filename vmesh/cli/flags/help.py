"""The text of `vmesh run --help`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from vmesh.cli.flags import qemu
from vmesh.cli.flags.table import FLAGS, Flag

_COLUMN = 28  # where meanings begin


def usage() -> str:
    """The whole of it."""
    taken = f"Of QEMU's flags these are taken too, for what holds anyway: {', '.join(qemu.ANYWAY)}."
    return "\n".join(
        [
            "usage: vmesh run [FLAG ...]",
            "",
            "Start a RISC-V `virt` machine, one process a service, and end with the guest's exit status. Without",
            "-kernel and -bios it boots the guest that `vmesh guest fetch` has cached.",
            "",
            "flags (QEMU's; one dash or two):",
            *(line for flag in FLAGS for line in _lines(flag)),
            "",
            *textwrap.wrap(taken, 116, break_on_hyphens=False),
            "",
            "With the serial port on a terminal (the default), Ctrl-A h lists the keys, Ctrl-A x ends the machine.",
        ]
    )


def _lines(flag: Flag) -> Iterator[str]:
    head = "  " + ", ".join(flag.names) + (f" {flag.syntax}" if flag.syntax else "")
    default = f" Default: {flag.default}." if flag.default else ""
    first, *rest = textwrap.wrap(flag.meaning.replace("`", "") + default, 88)
    if len(head) < _COLUMN:
        yield f"{head:<{_COLUMN}}{first}"
    else:
        yield head
        rest = [first, *rest]
    yield from (" " * _COLUMN + line for line in rest)
