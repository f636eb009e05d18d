"""What lies in memory at power-on, and where the harts start: the rules of QEMU's `virt`.

    plan = resolve(virt.board(512 << 20, harts=1, cpu=cpu_model.parse("rv64")), BootFiles(kernel=Path("Image")))
    plan.loads      parts of files, by name and offset: a kernel is never read into Python's memory
    plan.blobs      what was made for this boot: the reset vector (in MROM) and the device tree
    plan.start_pc   where every hart starts, in MROM

Firmware goes to the start of RAM; a raw kernel 2 MiB aligned behind it, an ELF file where its program headers say; the
initrd half of the RAM or 128 MiB behind the kernel's entry, whichever is less (QEMU 7; later ones: 512 MiB); the device
tree 2 MiB aligned at the top of what lies below 3 GiB. Sources: QEMU docs/system/riscv/virt.rst and its monitor's
`info roms`; OpenSBI docs/firmware/fw_dynamic.md; Linux Documentation/arch/riscv/{boot,boot-image-header}.rst; ELF gABI.
"""

from __future__ import annotations

import gzip
import itertools
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vmesh.board import devicetree, encode
from vmesh.board.devicetree import Chosen
from vmesh.board.errors import BoardError, ImageError
from vmesh.board.parts import Board, Range

MIB = 1 << 20
PAGE = 4096
# Where distributions put OpenSBI's fw_dynamic: QEMU's own copy, then Debian's and Fedora's packages.
FIRMWARE_PATHS = (
    Path("/usr/share/qemu/opensbi-riscv64-generic-fw_dynamic.bin"),
    Path("/usr/local/share/qemu/opensbi-riscv64-generic-fw_dynamic.bin"),
    Path("/usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin"),
    Path("/usr/share/opensbi/generic/firmware/fw_dynamic.bin"),
)

_KERNEL_ALIGNMENT = 2 * MIB
_INITRD_DISTANCE = 128 * MIB
_DTB_ALIGNMENT = 2 * MIB
_DTB_LIMIT = 3 << 30  # firmware may be unable to address more
_DTB_FILE_LIMIT = 2 * MIB
_FW_DYNAMIC_MAGIC, _FW_DYNAMIC_VERSION = 0x4942534F, 2
_S_MODE = 1
_PF_X, _PF_W = 1, 2
_IMAGE_HEADER = struct.Struct("<8x Q Q 32x 4s")  # text_offset, image_size, magic2
_SEED_BYTES = 32


@dataclass(frozen=True, slots=True)
class Load:
    """`size` bytes of `path` from `offset`, at guest physical `address`; zeros follow up to `memory_size` bytes."""

    name: str
    address: int
    path: Path
    offset: int
    size: int
    memory_size: int


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes made for this boot, at guest physical `address`."""

    name: str
    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class BootFiles:
    """What `vmesh run` was asked to boot. `bios` is "default", "none" or a path."""

    bios: str = "default"
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    dtb: Path | None = None


@dataclass(frozen=True, slots=True)
class BootPlan:
    """Memory at power-on. `dtb` is the device tree's blob, which is among `blobs` too."""

    loads: tuple[Load, ...]
    blobs: tuple[Blob, ...]
    dtb: Blob
    start_pc: int


@dataclass(frozen=True, slots=True)
class _Program:
    """Something to run: where it starts, and its parts. `end` is behind the last byte of memory it uses."""

    entry: int
    end: int
    loads: tuple[Load, ...]


def find_firmware(more: Sequence[Path] = ()) -> Path:
    """The host's OpenSBI, or the first of `more` that exists. Raises ImageError if there is none."""
    for path in (*FIRMWARE_PATHS, *more):
        if path.is_file():
            return path
    raise ImageError(
        "-bios default: found no OpenSBI (fw_dynamic.bin): install QEMU's or Debian's opensbi, "
        "or `vmesh guest fetch`, or give -bios FILE"
    )


def resolve(
    board: Board,
    files: BootFiles,
    *,
    scratch: Path,
    firmware: Sequence[Path] = (),
    rng_seed: bytes | None = None,
    kaslr_seed: bytes = b"",
) -> BootPlan:
    """Lay `files` out in the memory of `board`. Raises BoardError.

    `scratch` is a directory for what has to be unpacked (a kernel in gzip form); `firmware` are further places where
    `-bios default` looks; `rng_seed` is for a reproducible run, otherwise the host's random numbers seed the guest's.
    """
    ram, rom = board.ram, board.rom
    programs: list[_Program] = []
    if files.bios != "none":
        path = find_firmware(firmware) if files.bios == "default" else Path(files.bios)
        programs.append(_program("-bios", path, ram.base, ram))
    kernel: _Program | None = None
    if files.kernel is not None:
        free = programs[-1].end if programs else ram.base
        path = _unpacked(files.kernel, scratch, ram.size)
        kernel = _program("-kernel", path, _align_up(free, _KERNEL_ALIGNMENT), ram)
        programs.append(kernel)
    if not programs:
        raise BoardError("-bios none: expected -kernel with it, there is nothing to run")

    loads = [load for program in programs for load in program.loads]
    initrd: tuple[int, int] | None = None
    if files.initrd is not None:
        if kernel is None:
            raise BoardError("-initrd: expected -kernel with it")
        size = _size("-initrd", files.initrd)
        wished = kernel.entry + min(ram.size // 2, _INITRD_DISTANCE)
        start = max(wished, _align_up(kernel.end, PAGE))
        initrd = (start, start + size)
        loads.append(Load(f"-initrd {files.initrd}", start, files.initrd, 0, size, size))

    chosen = Chosen(files.append, initrd, os.urandom(_SEED_BYTES) if rng_seed is None else rng_seed, kaslr_seed)
    if files.dtb:
        data = devicetree.with_chosen(_read_dtb(files.dtb), chosen, f"-dtb {files.dtb}")
    else:
        data = devicetree.with_chosen(devicetree.build(board), chosen)
    dtb = Blob("the device tree", _align_down(min(ram.end, _DTB_LIMIT) - len(data), _DTB_ALIGNMENT), data)
    reset = reset_vector(programs[0].entry, dtb.address, kernel.entry if kernel else 0)
    _check_places(ram, [*loads, Load(dtb.name, dtb.address, Path(), 0, len(data), len(data))])
    return BootPlan(tuple(loads), (Blob("the reset vector", rom.base, reset), dtb), dtb, rom.base)


def reset_vector(start: int, dtb: int, next_address: int) -> bytes:
    """Machine code for the start of MROM: jump to `start` with a0 = hart id, a1 = `dtb`, a2 = fw_dynamic_info.

    That is a record of OpenSBI's: it tells the firmware to enter `next_address` in S-mode; 0: there is no next stage.
    """
    code_size = 6 * 4
    start_at, dtb_at, info_at = code_size, code_size + 8, code_size + 16
    code = encode.words(
        (
            encode.auipc(encode.T0, 0),
            encode.csrr(encode.A0, encode.MHARTID),
            encode.ld(encode.A1, encode.T0, dtb_at),
            encode.addi(encode.A2, encode.T0, info_at),
            encode.ld(encode.T0, encode.T0, start_at),
            encode.jalr(encode.ZERO, encode.T0, 0),
        )
    )
    options, boot_hart = 0, 0
    info = (_FW_DYNAMIC_MAGIC, _FW_DYNAMIC_VERSION, next_address, _S_MODE, options, boot_hart)
    return code + struct.pack("<8Q", start, dtb, *info)


def _program(flag: str, path: Path, raw_address: int, ram: Range) -> _Program:
    """Firmware or kernel: an ELF file where it wants to be, anything else as it is at `raw_address`."""
    size = _size(flag, path)
    name = f"{flag} {path}"
    head = _head(flag, path)
    if head.startswith(b"\x7fELF"):
        return _elf(name, path, size, ram)
    if head[:2] == b"MZ" and head[4:8] == b"zimg":
        raise ImageError(f"{name}: expected an Image, an ELF file or a raw image, got an EFI zboot image (vmlinuz.efi)")
    memory_size = size
    if len(head) >= _IMAGE_HEADER.size:
        _text_offset, image_size, magic = _IMAGE_HEADER.unpack_from(head)
        if magic == b"RSC\x05":
            memory_size = max(size, image_size)  # what the kernel's data without content needs behind the file's
    load = Load(name, raw_address, path, 0, size, size)
    return _Program(raw_address, raw_address + memory_size, (load,))


def _elf(name: str, path: Path, size: int, ram: Range) -> _Program:
    from elftools.common.exceptions import ELFError  # here: 70 ms that only an ELF file is worth
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            machine, bits, little = elf.header["e_machine"], elf.elfclass, elf.little_endian
            entry = int(elf.header["e_entry"])
            headers = [segment.header for segment in elf.iter_segments("PT_LOAD")] if bits == 64 else []
    except (ELFError, OSError, ValueError, struct.error, KeyError) as error:
        raise ImageError(f"{name}: not a readable ELF file: {error}") from error
    if machine != "EM_RISCV" or bits != 64 or not little:
        got = f"{machine}, {bits}-bit, {'little' if little else 'big'}-endian"
        raise ImageError(f"{name}: expected a 64-bit little-endian RISC-V ELF file, got {got}")
    headers = [header for header in headers if header["p_memsz"]]
    loads = [
        Load(name, header["p_paddr"], path, header["p_offset"], header["p_filesz"], header["p_memsz"])
        for header in headers
    ]
    if not loads:
        raise ImageError(f"{name}: expected loadable segments, the ELF file has none")
    for load in loads:
        if load.size > load.memory_size or load.offset + load.size > size:
            raise ImageError(f"{name}: the segment at {load.address:#x} is larger than its memory or the file")
    loads = [
        part
        for load, header in zip(loads, headers, strict=True)
        if (part := _in_ram(load, ram, needed=bool(header["p_flags"] & (_PF_X | _PF_W)))) is not None
    ]
    if not loads:
        raise ImageError(f"{name}: expected segments in RAM, which begins at {ram.base:#x}: link it there")
    low = min(load.address for load in loads)
    end = max(load.address + load.memory_size for load in loads)
    # A kernel linked to virtual addresses says those as its entry: then it starts at its lowest physical address.
    inside = any(load.address <= entry < load.address + load.memory_size for load in loads)
    return _Program(entry if inside else low, end, tuple(loads))


def _in_ram(load: Load, ram: Range, *, needed: bool) -> Load | None:
    """The part of an ELF file's segment that is not below RAM, where linkers put the file's headers and notes.

    As on QEMU's board, those are left out; raises ImageError if all of a segment with code or data would be.
    """
    below = ram.base - load.address
    if below <= 0:
        return load
    if below < load.memory_size:
        size = max(load.size - below, 0)
        return replace(
            load,
            address=ram.base,
            offset=load.offset + below if size else load.offset,
            size=size,
            memory_size=load.memory_size - below,
        )
    if needed:
        raise ImageError(f"{_place(load)} does not lie in RAM, which begins at {ram.base:#x}: link it there")
    return None


def _unpacked(path: Path, scratch: Path, limit: int) -> Path:
    """`path`, or where it was unpacked to if it is in gzip form; more than `limit` bytes are not unpacked."""
    _size("-kernel", path)
    if not _head("-kernel", path).startswith(b"\x1f\x8b"):
        return path
    target = scratch / f"{path.name}.unpacked"
    total = 0
    try:
        with gzip.open(path, "rb") as source, target.open("wb") as sink:
            while part := source.read(MIB):
                sink.write(part)
                total += len(part)
                if total > limit:
                    raise ImageError(f"-kernel {path}: unpacked it does not fit into the {_amount(limit)} of RAM")
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"-kernel {path}: cannot unpack the gzip form: {error}") from error
    return target


def _check_places(ram: Range, loads: Sequence[Load]) -> None:
    """Raises ImageError where something lies outside RAM or over something else, naming both."""
    for load in loads:
        if load.address < ram.base or load.address + load.memory_size > ram.end:
            raise ImageError(
                f"{_place(load)} does not fit into the {_amount(ram.size)} of RAM "
                f"at {ram.base:#x} to {ram.end:#x}: give more with -m"
            )
    for first, second in itertools.pairwise(sorted(loads, key=lambda load: load.address)):
        if first.address + first.memory_size > second.address:
            raise ImageError(f"{_place(first)} overlaps {_place(second)}")


def _place(load: Load) -> str:
    return f"{load.name}, {_amount(load.memory_size)} at {load.address:#x},"


def _amount(size: int) -> str:
    return f"{size / MIB:.1f} MiB" if size >= MIB else f"{size} bytes"


def _read_dtb(path: Path) -> bytes:
    size = _size("-dtb", path)
    if size > _DTB_FILE_LIMIT:
        raise ImageError(f"-dtb {path}: expected at most {_amount(_DTB_FILE_LIMIT)}, got {_amount(size)}")
    return path.read_bytes()


def _size(flag: str, path: Path) -> int:
    try:
        size = path.stat().st_size if path.is_file() else -1
    except OSError as error:
        raise ImageError(f"{flag} {path}: cannot read it: {error.strerror}") from error
    if size < 0:
        raise ImageError(f"{flag} {path}: expected a file, there is none of that name")
    if size == 0:
        raise ImageError(f"{flag} {path}: the file is empty")
    return size


def _head(flag: str, path: Path) -> bytes:
    """The first bytes of a file: enough to tell what it is."""
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise ImageError(f"{flag} {path}: cannot read it: {error.strerror}") from error


def _align_up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def _align_down(value: int, alignment: int) -> int:
    return value // alignment * alignment
