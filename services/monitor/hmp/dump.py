"""x, xp, print: memory and numbers in QEMU's formats (QEMU, monitor/hmp-cmds-target.c), instructions by capstone."""

from __future__ import annotations

from collections.abc import Iterator

from services.monitor.control import Parts, Work
from services.monitor.guest import Memory, memory
from services.monitor.hmp.command import Call, Format
from services.monitor.qmp.errors import QmpError

_MAX_BYTES = 1 << 20
_MAX_STRING = 4096
_INSTRUCTION_BYTES = 4
_ESCAPES = {0x27: "\\'", 0x5C: "\\\\", 0x0A: "\\n", 0x0D: "\\r"}


def examine(call: Call, *, virtual: bool) -> Work:
    """x and xp."""
    return Work(_examine(call, virtual=virtual))


def _examine(call: Call, *, virtual: bool) -> Parts:
    numbers = yield from call.numbers()
    guest = yield from memory(call.control, call.hart)
    form = call.values["fmt"]
    assert isinstance(form, Format)
    lines = {"i": _instructions, "s": _strings}.get(form.letter, _values)(guest, form, numbers["addr"], virtual)
    found: list[str] = []
    try:
        found += lines
    except QmpError as error:
        found.append(str(error))
    return "".join(f"{line}\n" for line in found)


def show(call: Call) -> Work:
    """print."""
    return Work(_show(call))


def _show(call: Call) -> Parts:
    value = (yield from call.numbers())["val"]
    form = call.values["fmt"]
    assert isinstance(form, Format)
    match form.letter:
        case "o":
            return f"{'0' if value else ''}{value:o}\n"
        case "u":
            return f"{value}\n"
        case "d":
            return f"{_signed(value, 8)}\n"
        case "c":
            return f"{_character(value & 0xFF)}\n"
        case "x":
            return f"{value:#x}\n"
    raise QmpError(f"print has no format '{form.letter}'")


def _values(guest: Memory, form: Format, address: int, virtual: bool) -> Iterator[str]:
    size = 1 if form.letter == "c" else form.size or 4
    per_line = (16 if form.letter == "c" or size > 1 else 8) // size
    _check_size(size * form.count)
    for place in range(0, form.count, per_line):
        at = address + place * size
        prefix = f"{at & (1 << 64) - 1:016x}:"
        count = min(per_line, form.count - place)
        try:
            data = guest.read(at, count * size, virtual=virtual)
        except QmpError as error:
            yield f"{prefix} {error}"
            return
        values = (int.from_bytes(data[n * size : (n + 1) * size], "little") for n in range(count))
        yield prefix + "".join(f" {_value(form.letter, value, size)}" for value in values)


def _value(letter: str, value: int, size: int) -> str:
    bits = size * 8
    decimal = -(-bits * 10 // 33)
    match letter:
        case "o":
            return f"{('0' if value else '') + format(value, 'o'):>{-(-bits // 3)}}"
        case "u":
            return f"{value:{decimal}}"
        case "d":
            return f"{_signed(value, size):{decimal}}"
        case "c":
            return _character(value)
    return f"0x{value:0{bits // 4}x}"


def _instructions(guest: Memory, form: Format, address: int, virtual: bool) -> Iterator[str]:
    from capstone import CS_ARCH_RISCV, CS_MODE_RISCV64, CS_MODE_RISCVC, Cs

    _check_size(_INSTRUCTION_BYTES * form.count)
    engine = Cs(CS_ARCH_RISCV, CS_MODE_RISCV64 | CS_MODE_RISCVC)
    for _ in range(form.count):
        try:
            code = guest.read(address, 2, virtual=virtual)
            if code[0] & 3 == 3:
                code += guest.read(address + 2, 2, virtual=virtual)
        except QmpError as error:
            yield f"0x{address:016x}:  {error}"
            return
        decoded = next(engine.disasm_lite(code, address), None)
        text = f"{decoded[2]:<15} {decoded[3]}".rstrip() if decoded else ".short" if len(code) == 2 else ".word"
        if not decoded:
            text = f"{text:<15} 0x{int.from_bytes(code, 'little'):0{2 * len(code)}x}"
        yield f"0x{address:016x}:  {int.from_bytes(code, 'little'):0{2 * len(code)}x}{'':<{10 - 2 * len(code)}}{text}"
        address = address + len(code) & (1 << 64) - 1


def _strings(guest: Memory, form: Format, address: int, virtual: bool) -> Iterator[str]:
    _check_size(form.count)
    for _ in range(form.count):
        text = bytearray()
        while len(text) < _MAX_STRING and (byte := guest.read(address + len(text), 1, virtual=virtual)) != b"\0":
            text += byte
        shown = "".join(_character(byte)[1:-1].replace("\\'", "'").replace('"', '\\"') for byte in text)
        yield f'{address:016x}: "{shown}"'
        address += len(text) + 1


def _check_size(size: int) -> None:
    if size > _MAX_BYTES:
        raise QmpError(f"at most {_MAX_BYTES} bytes at once")


def _signed(value: int, size: int) -> int:
    return value - (1 << 8 * size) if value >> 8 * size - 1 else value


def _character(value: int) -> str:
    if value in _ESCAPES:
        return f"'{_ESCAPES[value]}'"
    return f"'{chr(value)}'" if 0x20 <= value < 0x7F else f"'\\x{value:02x}'"
