"""Turns LLVM IR text into a position-independent blob: machine code and constants without external symbols."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection

from .host import HOST


class BuildError(Exception):
    """LLVM refused the IR, or the object needs something a blob cannot have."""


@dataclass(frozen=True, slots=True)
class Code:
    """Machine code to be copied to any page-aligned address, and the offsets of its symbols."""

    image: bytes
    symbols: dict[str, int]
    #: Where the machine code ends and its constants begin.
    text_size: int


@cache
def target_machine(level: int = 2) -> llvm.TargetMachine:
    """A target machine for this host's processor, all of its features used."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=level,
        reloc="pic",
        codemodel="small",
    )


def build(ir: str, level: int = 2) -> Code:
    """Optimises and compiles a module.

    Raises :class:`BuildError` with LLVM's message when the IR is not valid or the code refers to symbols outside of it.
    """
    machine = target_machine(level)
    try:
        module = llvm.parse_assembly(ir)
        module.verify()
    except RuntimeError as problem:
        raise BuildError(str(problem)) from None
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    options.loop_vectorization = options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return link(machine.emit_object(module))


def link(data: bytes) -> Code:
    """Lays an object's loaded sections behind each other and resolves its own relocations."""
    elf = ELFFile(io.BytesIO(data))
    image = bytearray()
    placed: dict[int, int] = {}
    text_size = 0
    # code first, so that a single function begins at 0
    for index, section in sorted(enumerate(elf.iter_sections()), key=lambda item: not item[1]["sh_flags"] & 4):
        if section["sh_flags"] & 2 and section["sh_size"] and section.name != ".eh_frame":
            if section["sh_type"] == "SHT_NOBITS" or section["sh_flags"] & 1:
                raise BuildError(f"expected code and constants only, got writable section {section.name}")
            align = max(section["sh_addralign"], 16)
            image.extend(bytes(-len(image) % align))
            placed[index] = len(image)
            image.extend(section.data())
            if section["sh_flags"] & 4:
                text_size = len(image)
    table: Any = elf.get_section_by_name(".symtab")
    symbols: dict[str, int] = {}
    for symbol in table.iter_symbols():
        if symbol["st_shndx"] in placed and symbol["st_info"]["type"] == "STT_FUNC":
            symbols[symbol.name] = placed[symbol["st_shndx"]] + symbol["st_value"]
    for section in elf.iter_sections():
        if not isinstance(section, RelocationSection) or section["sh_info"] not in placed:
            continue
        base = placed[section["sh_info"]]
        for relocation in section.iter_relocations():
            symbol = table.get_symbol(relocation["r_info_sym"])
            if symbol["st_shndx"] not in placed:
                raise BuildError(f"expected no external symbol, got {symbol.name}")
            where = base + relocation["r_offset"]
            value = placed[symbol["st_shndx"]] + symbol["st_value"] + relocation["r_addend"] - where
            kind = relocation["r_info_type"]
            if kind not in HOST.relocations:
                raise BuildError(f"expected PC-relative relocations, got type {kind} for {symbol.name}")
            struct.pack_into(HOST.relocations[kind], image, where, value)
    return Code(bytes(image), symbols, text_size)


@cache
def _omit_passes() -> None:
    """Loop strength reduction costs a fifth of code generation and does nothing for guest code."""
    llvm.set_option("vmesh", "-disable-lsr")


def build_region(ir: str) -> Code:
    """Compiles hot code: the passes that pay for small functions, and LLVM's quick code generator."""
    _omit_passes()
    machine = target_machine(1)
    try:
        module = llvm.parse_assembly(ir)
        module.verify()
    except RuntimeError as problem:
        raise BuildError(str(problem)) from None
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=1))
    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.run(module, builder)
    return link(machine.emit_object(module))
