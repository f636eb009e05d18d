"""Where firmware, kernel, initrd and device tree go: QEMU's rules, and what is refused."""

from __future__ import annotations

import gzip
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import unicorn
from unicorn import riscv_const

from vmesh.board import boot, cpu_model, devicetree, virt
from vmesh.board.boot import BootFiles, BootPlan, resolve
from vmesh.board.errors import BoardError, ImageError
from vmesh.board.parts import Board

MIB = 1 << 20


def board(ram_size: int = 512 * MIB) -> Board:
    return virt.board(ram_size, 1, cpu_model.parse("rv64"))


def sized(path: Path, size: int, head: bytes = b"") -> Path:
    """A file of `size` bytes that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def elf(
    path: Path, segments: list[tuple[int, bytes, int]], entry: int, machine: int = 243, bits: int = 2, flags: int = 7
) -> Path:
    """An ELF file with segments of (physical address, content, size in memory), linked to high virtual addresses.

    `flags` are those of the first segment; the others may be read, written and run.
    """
    ident = b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, entry, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    offset = 64 + 56 * len(segments)
    table, content = b"", b""
    for address, data, memory_size in segments:
        where = offset + len(content)
        table += struct.pack(
            "<IIQQQQQQ",
            1,
            7 if table else flags,
            where,
            0xFFFF_FFFF << 32 | address,
            address,
            len(data),
            memory_size,
            4096,
        )
        content += data
    path.write_bytes(header + table + content)
    return path


def reset_record(plan: BootPlan) -> tuple[int, ...]:
    """start, dtb and OpenSBI's fw_dynamic_info of the reset vector."""
    (vector,) = [blob for blob in plan.blobs if blob.address == virt.MROM.range.base]
    return struct.unpack("<8Q", vector.data[24:])


@pytest.mark.peer
@pytest.mark.parametrize("ram", [64, 128, 512, 4096])
def test_resolve_puts_everything_where_qemu_does(peer: Callable[[str], str], tmp_path: Path, ram: int) -> None:
    firmware, kernel = sized(tmp_path / "fw", 3 * MIB + 5), sized(tmp_path / "kernel", 7 * MIB)
    initrd = sized(tmp_path / "initrd", 2 * MIB + 3)
    flags = ["-bios", str(firmware), "-kernel", str(kernel), "-initrd", str(initrd), "-m", f"{ram}M", "-S"]
    command = [peer("qemu-system-riscv64"), "-machine", "virt", *flags, "-display", "none", "-serial", "none"]
    answer = subprocess.run(
        [*command, "-monitor", "stdio"], input="info roms\nquit\n", text=True, check=True, capture_output=True
    ).stdout
    theirs = {name: int(at, 16) for at, name in re.findall(r'addr=(\w+) size=\w+ mem=\w+ name="([^"]+)"', answer)}

    plan = resolve(board(ram * MIB), BootFiles(str(firmware), kernel, initrd), scratch=tmp_path)

    ours = {str(load.path): load.address for load in plan.loads} | {"fdt": plan.dtb.address}
    assert ours == {name: theirs[name] for name in ours}


def test_resolve_reset_vector_hands_over_to_firmware_and_kernel(tmp_path: Path) -> None:
    firmware, kernel = sized(tmp_path / "fw", 300_000), sized(tmp_path / "kernel", MIB)

    plan = resolve(board(), BootFiles(str(firmware), kernel), scratch=tmp_path)

    assert plan.start_pc == 0x1000
    assert reset_record(plan) == (0x8000_0000, plan.dtb.address, 0x4942534F, 2, 0x8020_0000, 1, 0, 0)


def test_reset_vector_runs_as_firmware_expects_it() -> None:
    start, dtb, kernel = 0x8000_0000, 0x9FE0_0000, 0x8020_0000
    hart = unicorn.Uc(unicorn.UC_ARCH_RISCV, unicorn.UC_MODE_RISCV64)
    hart.mem_map(virt.MROM.range.base, virt.MROM.range.size)
    hart.mem_map(start, 4096)
    vector = boot.reset_vector(start, dtb, kernel)
    hart.mem_write(virt.MROM.range.base, vector)

    hart.emu_start(virt.MROM.range.base, start, count=20)

    assert hart.reg_read(riscv_const.UC_RISCV_REG_PC) == start
    assert hart.reg_read(riscv_const.UC_RISCV_REG_A0) == 0
    assert hart.reg_read(riscv_const.UC_RISCV_REG_A1) == dtb
    info = hart.reg_read(riscv_const.UC_RISCV_REG_A2) - virt.MROM.range.base
    assert struct.unpack_from("<6Q", vector, info) == (0x4942534F, 2, kernel, 1, 0, 0)


def test_resolve_large_file_is_not_read(tmp_path: Path) -> None:
    kernel = sized(tmp_path / "kernel", 300 * MIB)

    plan = resolve(board(), BootFiles("none", kernel), scratch=tmp_path)

    (load,) = plan.loads
    assert (load.address, load.path, load.offset, load.size, load.memory_size) == (
        virt.DRAM_BASE, kernel, 0, 300 * MIB, 300 * MIB,
    )  # fmt: skip
    assert sum(len(blob.data) for blob in plan.blobs) < 10_000


def test_resolve_bios_none_starts_the_elf_file_at_its_entry(tmp_path: Path) -> None:
    base = virt.DRAM_BASE
    kernel = elf(tmp_path / "k.elf", [(base, b"\x13" * 8, 8), (base + 0x2000, b"abc", 0x1000)], base + 4)

    plan = resolve(board(), BootFiles("none", kernel), scratch=tmp_path)

    assert [(load.address, load.size, load.memory_size) for load in plan.loads] == [
        (base, 8, 8),
        (base + 0x2000, 3, 0x1000),
    ]
    assert [kernel.read_bytes()[load.offset :][: load.size] for load in plan.loads] == [b"\x13" * 8, b"abc"]
    assert reset_record(plan)[0] == base + 4


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ((virt.DRAM_BASE - 0x1000, b"\x7f" * 0x1008, 0x2000, 5), (virt.DRAM_BASE, b"\x7f" * 8, 0x1000)),
        ((virt.DRAM_BASE - 0x1000, b"\x7f" * 0x800, 0x2000, 6), (virt.DRAM_BASE, b"", 0x1000)),
        ((virt.DRAM_BASE - 0x1000, b"\x7f" * 0x120, 0x120, 4), None),
    ],
    ids=["headers and code", "headers and zeros", "headers and notes alone"],
)
def test_resolve_elf_leaves_out_what_a_linker_put_below_ram(
    tmp_path: Path, first: tuple[int, bytes, int, int], expected: tuple[int, bytes, int] | None
) -> None:
    text = (virt.DRAM_BASE + 0x1000, b"text", 4)
    kernel = elf(tmp_path / "k.elf", [first[:3], text], virt.DRAM_BASE + 0x1000, flags=first[3])
    plan = resolve(board(), BootFiles("none", kernel), scratch=tmp_path)
    whole = kernel.read_bytes()
    assert [(load.address, whole[load.offset : load.offset + load.size], load.memory_size) for load in plan.loads] == [
        *([expected] if expected else []),
        text,
    ]
    assert reset_record(plan)[0] == virt.DRAM_BASE + 0x1000


def test_resolve_elf_kernel_with_virtual_entry_starts_at_its_lowest_address(tmp_path: Path) -> None:
    kernel = elf(tmp_path / "vmlinux", [(0x8040_0000, b"x" * 16, 16)], 0xFFFF_FFFF_8000_0000)

    plan = resolve(board(), BootFiles(str(sized(tmp_path / "fw", 100)), kernel), scratch=tmp_path)

    assert reset_record(plan)[4] == 0x8040_0000


def test_resolve_gzip_kernel_is_unpacked_to_a_file(tmp_path: Path) -> None:
    kernel = tmp_path / "Image.gz"
    kernel.write_bytes(gzip.compress(b"kernel" * 1000))

    (load,) = resolve(board(), BootFiles("none", kernel), scratch=tmp_path).loads

    assert load.path != kernel
    assert load.path.read_bytes() == b"kernel" * 1000


def test_resolve_initrd_keeps_clear_of_what_the_image_header_says_the_kernel_uses(tmp_path: Path) -> None:
    header = struct.pack("<8xQQ32x4s", 0x20_0000, 200 * MIB, b"RSC\x05")
    kernel, initrd = sized(tmp_path / "Image", MIB, header), sized(tmp_path / "initrd", MIB)

    plan = resolve(board(), BootFiles("none", kernel, initrd), scratch=tmp_path)

    assert plan.loads[-1].address == virt.DRAM_BASE + 200 * MIB


def test_resolve_device_tree_of_the_user_is_used(tmp_path: Path) -> None:
    mine = tmp_path / "my.dtb"
    mine.write_bytes(devicetree.build(board(64 * MIB)))

    plan = resolve(board(), BootFiles("none", sized(tmp_path / "k", 16), dtb=mine, append="hello"), scratch=tmp_path)

    assert b"hello\0" in plan.dtb.data
    assert struct.pack(">QQ", virt.DRAM_BASE, 64 * MIB) in plan.dtb.data


def test_resolve_same_seed_gives_the_same_plan(tmp_path: Path) -> None:
    files = BootFiles("none", sized(tmp_path / "k", 16))

    assert resolve(board(), files, scratch=tmp_path, rng_seed=b"s") == resolve(
        board(), files, scratch=tmp_path, rng_seed=b"s"
    )
    assert resolve(board(), files, scratch=tmp_path) != resolve(board(), files, scratch=tmp_path)


def test_find_firmware_takes_a_further_place_where_the_host_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot, "FIRMWARE_PATHS", (tmp_path / "absent",))
    cached = sized(tmp_path / "fw_dynamic.bin", 10)

    assert boot.find_firmware([cached]) == cached
    with pytest.raises(ImageError, match="found no OpenSBI"):
        boot.find_firmware()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (BootFiles("none"), "there is nothing to run"),
        (BootFiles("absent"), "-bios absent: expected a file"),
        (BootFiles("none", Path("absent")), "-kernel absent: expected a file"),
        (BootFiles("none", Path("empty")), "-kernel empty: the file is empty"),
        (BootFiles("none", Path("big")), r"-kernel big, 65\.0 MiB at 0x80000000, does not fit into the 64\.0 MiB"),
        (BootFiles("big"), r"-bios big, 65\.0 MiB at 0x80000000, does not fit"),
        (BootFiles("none", Path("small"), Path("half")), r"-initrd half, 40\.0 MiB at 0x82000000, does not fit"),
        (BootFiles("none", Path("small"), Path("under")), r"-initrd under, 31\.5 MiB.*overlaps the device tree"),
        (BootFiles("small", Path("low.elf")), r"-bios small, 16 bytes at 0x80000000, overlaps -kernel low\.elf"),
        (BootFiles("none", Path("mmio.elf")), r"-kernel mmio\.elf, 16 bytes at 0x10000000, does not lie in RAM"),
        (BootFiles("none", Path("notes.elf")), "expected segments in RAM"),
        (BootFiles("none", Path("arm.elf")), "expected a 64-bit little-endian RISC-V ELF file, got EM_AARCH64"),
        (BootFiles("none", Path("none.elf")), "expected loadable segments"),
        (BootFiles("none", Path("cut.elf")), "larger than its memory or the file"),
        (BootFiles("none", Path("bad.elf")), "not a readable ELF file"),
        (BootFiles("none", Path("bad.gz")), "cannot unpack"),
        (BootFiles("none", Path("bomb.gz")), "unpacked it does not fit"),
        (BootFiles("none", Path("zboot")), "EFI zboot"),
        (BootFiles("none", Path("small"), dtb=Path("small")), "device tree"),
        (BootFiles("none", Path("small"), dtb=Path("big")), "expected at most"),
    ],
)
def test_resolve_bad_files_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: BootFiles, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, mib in {"empty": 0.0, "small": 2**-16, "big": 65.0, "half": 40.0, "under": 31.5}.items():
        sized(Path(name), int(mib * MIB))
    elf(Path("low.elf"), [(virt.DRAM_BASE + 8, b"x" * 16, 16)], 0)
    elf(Path("mmio.elf"), [(virt.UART0.range.base, b"x" * 16, 16)], 0)
    elf(Path("notes.elf"), [(virt.DRAM_BASE - 4096, b"x" * 16, 16)], 0, flags=4)
    elf(Path("arm.elf"), [(virt.DRAM_BASE, b"x", 1)], 0, machine=183)
    elf(Path("none.elf"), [], 0)
    whole = elf(Path("cut.elf"), [(virt.DRAM_BASE, b"x" * 100, 100)], 0).read_bytes()
    Path("cut.elf").write_bytes(whole[:-50])
    Path("bad.elf").write_bytes(b"\x7fELF" + b"\xff" * 20)
    Path("bad.gz").write_bytes(gzip.compress(b"x" * 1000)[:-9])
    Path("bomb.gz").write_bytes(gzip.compress(bytes(65 * MIB), 1))
    sized(Path("zboot"), 100, b"MZ\0\0zimg")

    with pytest.raises(BoardError, match=expected) as caught:
        resolve(board(64 * MIB), files, scratch=tmp_path)
    assert "\n" not in str(caught.value)
