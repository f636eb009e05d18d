"""What there is to read, by selector: docs/specs/fw_cfg.rst of QEMU, "Firmware Configuration Items"."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping

SIGNATURE, ID, HARTS, DIRECTORY, FIRST_FILE = 0x00, 0x01, 0x05, 0x19, 0x20

_TRADITIONAL, _DMA = 1, 2
_ENTRY = struct.Struct(">IHH56s")  # size, selector, reserved, name
# Those that QEMU's board has by itself. They say nothing: no order of booting, no time after which to boot again.
_QEMUS = {"bios-geometry": b"", "bootorder": b"", "etc/boot-fail-wait": b"\xff\xff\xff\xff"}


def items(harts: int, files: Mapping[str, bytes]) -> dict[int, bytes]:
    """The items of a machine with so many harts and, beside QEMU's own, these files, in the order of their names."""
    named = sorted((os.fsencode(name), content) for name, content in {**_QEMUS, **files}.items())
    directory = [_ENTRY.pack(len(content), FIRST_FILE + place, 0, name) for place, (name, content) in enumerate(named)]
    return {
        SIGNATURE: b"QEMU",
        ID: (_TRADITIONAL | _DMA).to_bytes(4, "little"),
        HARTS: harts.to_bytes(2, "little"),
        DIRECTORY: len(named).to_bytes(4, "big") + b"".join(directory),
        **{FIRST_FILE + place: content for place, (_, content) in enumerate(named)},
    }
