"""x, xp, print: memory and numbers in QEMU's formats (QEMU, monitor/hmp-cmds-target.c), instructions by capstone."""

from __future__ import annotations

from collections.abc import Iterator

from vmesh_services.monitor.control import Parts, Work
from vmesh_services.monitor.guest import read
from vmesh_services.monitor.hmp.command import Call, Format
from vmesh_services.monitor.qmp.errors import QmpError

_MAX_BYTES = 1 << 20
_MAX_STRING = 4096
_INSTRUCTION_BYTES = 4
_NO_MEMORY = "Cannot access memory"
_ESCAPES = {0x27: "\\'", 0x5C: "\\\\", 0x0A: "\\n", 0x0D: "\\r"}


def examine(call: Call, *, virtual: bool) -> Work:
    """x and xp."""
    return Work(_examine(call, virtual=virtual))


def _examine(call: Call, *, virtual: bool) -> Parts:
    address = (yield from call.numbers())["addr"]
    form = call.values["fmt"]
    assert isinstance(form, Format)
    hart = call.hart if virtual else None
    if form.letter == "s":
        return (yield from _strings(call, form, address, hart))
    size = _size(form)
    if size * form.count > _MAX_BYTES:
        raise QmpError(f"at most {_MAX_BYTES} bytes at once")
    data = yield from read(call.control, address, size * form.count, hart=hart)
    lines = _instructions(data, form, address) if form.letter == "i" else _values(data, form, address)
    return "".join(f"{line}\n" for line in lines)


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


def _size(form: Format) -> int:
    """Bytes of one of the things that are shown."""
    return {"c": 1, "i": _INSTRUCTION_BYTES}.get(form.letter, form.size or 4)


def _values(data: bytes, form: Format, address: int) -> Iterator[str]:
    size = _size(form)
    per_line = (16 if form.letter == "c" or size > 1 else 8) // size
    for place in range(0, form.count, per_line):
        at = address + place * size
        prefix = f"{at & (1 << 64) - 1:016x}:"
        count = min(per_line, form.count - place)
        piece = data[place * size : (place + count) * size]
        if len(piece) < count * size:
            yield f"{prefix} {_NO_MEMORY}"
            return
        values = (int.from_bytes(piece[n * size : (n + 1) * size], "little") for n in range(count))
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
            return f"{_signed(value, size) if size == 8 else value:{decimal}}"
        case "c":
            return _character(value)
    return f"0x{value:0{bits // 4}x}"


def _instructions(data: bytes, form: Format, address: int) -> Iterator[str]:
    from capstone import CS_ARCH_RISCV, CS_MODE_RISCV64, CS_MODE_RISCVC, Cs

    engine = Cs(CS_ARCH_RISCV, CS_MODE_RISCV64 | CS_MODE_RISCVC)
    place = 0
    for _ in range(form.count):
        at = address + place & (1 << 64) - 1
        code = data[place : place + (4 if data[place : place + 1] and data[place] & 3 == 3 else 2)]
        if len(code) < 2 or (code[0] & 3 == 3 and len(code) < 4):
            yield f"0x{at:016x}:  {_NO_MEMORY}"
            return
        digits = 2 * len(code)
        word = f"{int.from_bytes(code, 'little'):0{digits}x}"
        decoded = next(engine.disasm_lite(code, at), None)
        if decoded:
            text = f"{decoded[2]:<15} {decoded[3]}".rstrip()
        else:
            text = f"{'.short' if len(code) == 2 else '.word':<15} 0x{word}"
        yield f"0x{at:016x}:  {word:<10}{text}"
        place += len(code)


def _strings(call: Call, form: Format, address: int, hart: int | None) -> Parts:
    lines = []
    for _ in range(form.count):
        data = yield from read(call.control, address, _MAX_STRING, hart=hart)
        if not data:
            lines.append(f"{address:016x}: {_NO_MEMORY}\n")
            break
        text, _, _ = data.partition(b"\0")
        shown = "".join('\\"' if byte == 0x22 else "'" if byte == 0x27 else _character(byte)[1:-1] for byte in text)
        lines.append(f'{address:016x}: "{shown}"\n')
        address = address + len(text) + 1 & (1 << 64) - 1
    return "".join(lines)


def _signed(value: int, size: int) -> int:
    return value - (1 << 8 * size) if value >> 8 * size - 1 else value


def _character(value: int) -> str:
    if value in _ESCAPES:
        return f"'{_ESCAPES[value]}'"
    return f"'{chr(value)}'" if 0x20 <= value < 0x7F else f"'\\x{value:02x}'"
