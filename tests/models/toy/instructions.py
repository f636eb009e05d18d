"""The toy's instructions: ``opcode rd ra rb`` and an immediate of 18 bits, in 4 bytes."""

from __future__ import annotations

from itertools import count

from vmesh_services.cpu.isa.description import Flow, InstructionSet, part, token
from vmesh_services.cpu.isa.semantics import Trap, drain_posted, jump, load, store
from vmesh_services.cpu.native.lang import Dispatch, i64, inline, native, u8, u16, u32, u64

from .registers import CALLED, CAUSE, EPC, ILLEGAL, MASK, SCRATCH, VECTOR, Hart

TOKENS = {
    "rd": token(3),
    "ra": token(3),
    "rb": token(3),
    "value": part("value", "17:0"),
    "place": part("place", "19:2"),
}
SIGNED = {"value": True, "place": True}
instruction = InstructionSet(TOKENS, SIGNED)
_opcodes = count()


def _encoding(immediate: str = "value") -> str:
    return f"{next(_opcodes):05b} rd ra rb {immediate}"


@instruction("add", _encoding(), "", result="rd")
def add(ra: u64, rb: u64) -> u64:
    return ra + rb


@instruction("sub", _encoding(), "", result="rd")
def sub(ra: u64, rb: u64) -> u64:
    return ra - rb


@instruction("mul", _encoding(), "", result="rd")
def mul(ra: u64, rb: u64) -> u64:
    return ra * rb


@instruction("and", _encoding(), "", result="rd")
def and_(ra: u64, rb: u64) -> u64:
    return ra & rb


@instruction("or", _encoding(), "", result="rd")
def or_(ra: u64, rb: u64) -> u64:
    return ra | rb


@instruction("shl", _encoding(), "", result="rd")
def shl(ra: u64, rb: u64) -> u64:
    return ra << (rb & 63)


@instruction("shr", _encoding(), "", result="rd")
def shr(ra: u64, rb: u64) -> u64:
    return ra >> (rb & 63)


@instruction("addi", _encoding(), "", result="rd")
def addi(ra: u64, imm: i64) -> u64:
    return ra + u64(imm)


@instruction("li", _encoding(), "", result="rd")
def li(imm: i64) -> u64:
    return u64(imm)


@instruction("here", _encoding("place"), "", result="rd")
def here(pc: u64, imm: i64) -> u64:
    return pc + u64(imm)


def _load(name: str, type_: type[int]) -> None:
    @instruction(name, _encoding(), "", result="rd")
    def semantics(ra: u64, imm: i64) -> u64:
        return u64(load(type_, ra + u64(imm)))


def _store(name: str, type_: type[int]) -> None:
    @instruction(name, _encoding(), "")
    def semantics(ra: u64, rb: u64, imm: i64) -> None:
        store(type_, ra + u64(imm), type_(rb))


for _bits, _type in ((8, u8), (16, u16), (32, u32), (64, u64)):
    _load(f"ld{_bits}", _type)
    _store(f"st{_bits}", _type)


@instruction("beq", _encoding("place"), "", result="branch", flow=Flow.BRANCH)
def beq(ra: u64, rb: u64) -> bool:
    return ra == rb


@instruction("bne", _encoding("place"), "", result="branch", flow=Flow.BRANCH)
def bne(ra: u64, rb: u64) -> bool:
    return ra != rb


@instruction("blt", _encoding("place"), "", result="branch", flow=Flow.BRANCH)
def blt(ra: u64, rb: u64) -> bool:
    return ra < rb


@instruction("jmp", _encoding("place"), "", flow=Flow.JUMP)
def jmp(pc: u64, imm: i64) -> None:
    jump(pc + u64(imm))


@instruction("call", _encoding("place"), "", result="rd", flow=Flow.JUMP, links="ra")
def call(pc: u64, next_pc: u64, imm: i64) -> u64:
    jump(pc + u64(imm))
    return next_pc


@instruction("jr", _encoding(), "", flow=Flow.INDIRECT)
def jr(ra: u64) -> None:
    jump(ra)


@inline
def get_epc(hart: Hart) -> u64:
    return hart.epc


@inline
def get_cause(hart: Hart) -> u64:
    return hart.why


@inline
def get_vector(hart: Hart) -> u64:
    return hart.vector


@inline
def get_mask(hart: Hart) -> u64:
    return hart.mask


@inline
def get_scratch(hart: Hart) -> u64:
    return hart.scratch_register


@inline
def get_nothing(hart: Hart) -> u64:
    return 0


@inline
def put_epc(hart: Hart, value: u64) -> None:
    hart.epc = value & ~3


@inline
def put_cause(hart: Hart, value: u64) -> None:
    hart.why = value


@inline
def put_vector(hart: Hart, value: u64) -> None:
    hart.vector = value & ~3


@inline
def put_mask(hart: Hart, value: u64) -> None:
    hart.mask = value & 15


@inline
def put_scratch(hart: Hart, value: u64) -> None:
    hart.scratch_register = value


@inline
def put_nothing(hart: Hart, value: u64) -> None:
    return


_GET = Dispatch({EPC: get_epc, CAUSE: get_cause, VECTOR: get_vector, MASK: get_mask, SCRATCH: get_scratch}, get_nothing)
_PUT = Dispatch({EPC: put_epc, CAUSE: put_cause, VECTOR: put_vector, MASK: put_mask, SCRATCH: put_scratch}, put_nothing)


@native
def control_read(hart: Hart, number: u64) -> u64:
    return _GET(number, hart)  # type: ignore[no-any-return]


@native
def control_write(hart: Hart, number: u64, value: u64) -> None:
    _PUT(number, hart, value)


@instruction("get", _encoding(), "", result="rd", system=True)
def get(hart: Hart, imm: i64) -> u64:
    return control_read(hart, u64(imm))


@instruction("put", _encoding(), "", system=True)
def put(hart: Hart, ra: u64, imm: i64) -> None:
    control_write(hart, u64(imm), ra)
    hart.changed = 1


@instruction("switch", _encoding(), "", system=True)
def switch(hart: Hart, imm: i64) -> None:
    """Interrupts are on or off from now on."""
    hart.interrupts_on = u64(imm) & 1
    hart.changed = 1


@instruction("back", _encoding(), "", system=True)
def back(hart: Hart) -> None:
    """From the handler, with interrupts on."""
    hart.interrupts_on = 1
    hart.changed = 1
    jump(hart.epc)


@instruction("wait", _encoding(), "", system=True)
def wait(hart: Hart) -> None:
    hart.waiting = 1
    hart.changed = 1


@instruction("settle", _encoding(), "")
def settle() -> None:
    """Posted writes have reached their devices."""
    drain_posted()


@instruction("trap", _encoding(), "", traps=True)
def trap(imm: i64) -> None:
    raise Trap(CALLED, u64(imm))


#: Its encoding is not assigned; what has it is illegal.
@instruction("illegal", _encoding(), "", traps=True)
def illegal() -> None:
    raise Trap(ILLEGAL, 0)


INSTRUCTIONS = tuple(instruction.instructions)
