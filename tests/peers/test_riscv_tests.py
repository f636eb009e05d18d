"""The official ISA tests (riscv-tests), all code interpreted and all code translated. ``VMESH_RISCV_TESTS`` names a
folder with executables of its environment ``p`` (rv64ui-p-add and so on)."""

from __future__ import annotations

import os
import struct
import threading
import time
from pathlib import Path

import pytest

from tests.cpu_harness import BASE
from tests.models.guest import virt
from tests.models.tiers import INTERPRET, TRANSLATE

FOLDER = os.environ.get("VMESH_RISCV_TESTS", "")
SIZE = 4 << 20
SECONDS = 60.0
TESTS = sorted(path.name for path in Path(FOLDER).iterdir()) if FOLDER else []


def symbol(image: bytes, wanted: bytes) -> int:
    """The value of a symbol of an ELF file of 64 bits."""
    sections_at, _, _, _, _, size, count, _ = struct.unpack_from("<QIHHHHHH", image, 40)
    sections = [struct.unpack_from("<IIQQQQIIQQ", image, sections_at + size * number) for number in range(count)]
    for section in sections:
        if section[1] == 2:  # SHT_SYMTAB
            names = sections[section[6]][4]
            for place in range(section[4], section[4] + section[5], 24):
                name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", image, place)
                if image[names + name : image.index(b"\0", names + name)] == wanted:
                    return int(value)
    raise ValueError(f"no symbol {wanted!r}")


@pytest.mark.skipif(not FOLDER, reason="no riscv-tests: VMESH_RISCV_TESTS names a folder of executables")
@pytest.mark.parametrize("mode", [INTERPRET, TRANSLATE])
@pytest.mark.parametrize("name", TESTS)
def test_official(name: str, mode: str) -> None:
    image = (Path(FOLDER) / name).read_bytes()
    cpu = virt(1, SIZE, mode=mode)
    cpu.reset()
    headers_at, count = struct.unpack_from("<Q", image, 32)[0], struct.unpack_from("<H", image, 56)[0]
    for number in range(count):
        kind, _, offset, _, address, size, _, _ = struct.unpack_from("<IIQQQQQQ", image, headers_at + 56 * number)
        if kind == 1 and size and address >= BASE:  # PT_LOAD
            cpu.write(address, image[offset : offset + size])
    cpu.harts.reset(struct.unpack_from("<Q", image, 24)[0])
    tohost = symbol(image, b"tohost")
    thread = threading.Thread(target=cpu.run, kwargs={"seconds": SECONDS}, daemon=True)
    thread.start()
    while not (said := int.from_bytes(cpu.read(tohost, 8), "little")) and thread.is_alive():
        time.sleep(0.001)
    cpu._deadlines[0] = 0.0
    thread.join(10)
    assert said == 1, f"check {said >> 1} failed"
