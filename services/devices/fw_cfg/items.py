"""What there is to read, by selector: docs/specs/fw_cfg.rst of QEMU, "Firmware Configuration Items"."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping

from vmesh.board.virt import FW_CFG_FILES

SIGNATURE, ID, HARTS, DIRECTORY, FIRST_FILE = 0x00, 0x01, 0x05, 0x19, 0x20

_TRADITIONAL, _DMA = 1, 2
_ENTRY = struct.Struct(">IHH56s")  # size, selector, reserved, name


def items(harts: int, files: Mapping[str, bytes]) -> dict[int, bytes]:
    """The items of a machine with so many harts and, beside QEMU's own, these files, in the order of their names."""
    named = sorted((os.fsencode(name), content) for name, content in {**FW_CFG_FILES, **files}.items())
    directory = [_ENTRY.pack(len(content), FIRST_FILE + place, 0, name) for place, (name, content) in enumerate(named)]
    return {
        SIGNATURE: b"QEMU",
        ID: (_TRADITIONAL | _DMA).to_bytes(4, "little"),
        HARTS: harts.to_bytes(2, "little"),
        DIRECTORY: len(named).to_bytes(4, "big") + b"".join(directory),
        **{FIRST_FILE + place: content for place, (_, content) in enumerate(named)},
    }


def digest(harts: int, files: Mapping[str, bytes]) -> bytes:
    """What tells this machine's items from another one's: not those that every machine has, which may become more."""
    made = hashlib.blake2b(harts.to_bytes(2, "little"), digest_size=16)
    for name, content in sorted(files.items()):
        made.update(struct.pack("<QQ", len(os.fsencode(name)), len(content)) + os.fsencode(name))
        made.update(content)
    return made.digest()
