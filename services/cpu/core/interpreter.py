"""The interpreter (tier 0): one threaded handler per instruction and variant, generated from the descriptions.

A handler is a function of (hart, ip, bias, tlb, retired) that ends in a tail call of the handler in the next slot.
``ip`` is the
address of the instruction's slot; its guest pc is ``ip / 8 + bias``, since a slot of 16 bytes stands for 2 bytes of
code. Fast handlers
call nothing: where the TLB does not answer they tail-call their slow twin, which runs the same semantics with calls.
Anything out of
the ordinary leaves through ``go``, which finds from the hart's record where to go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..isa.description import Flow, Instruction
from ..isa.interface import BitsOperand, Code, Isa, Operand, RegisterOperand, Variant, Way
from ..native.builder import Builder
from ..native.compiler import Module
from ..native.frame import Frame, call
from ..native.lang import IntType, PtrType
from ..native.values import BOOLEAN, I64, LIKELY, U8, U32, U64, UNLIKELY, Lazy, NativeError, Value
from .code_pages import instruction_bits
from .controllers import Native
from .execution import EXPORTS, at_breakpoint, attention, decode_slot, enter, go, single
from .memory import memory_locate, memory_read, memory_write, settle_store
from .state import (
    EXIT_DRAIN,
    FETCH_ENTRIES,
    PENDING_EXIT,
    PENDING_TRAP,
    READ,
    SLOT_BYTES,
    TLB_ENTRIES,
    WRITE,
    Hart,
    Slot,
    Tlb,
    TlbEntry,
)
from .tlb import FOLD, OFFSET

SIGNATURE = "(ptr %hart, ptr %ip, i64 %bias, ptr %tlb, i64 %n)"


@dataclass
class Handler:
    """The handler being emitted: its builder, and what control flow the semantics asked for."""

    builder: Builder
    isa: Isa
    instruction: Instruction | None = None
    length: int = 4
    slow_twin: str = ""
    target: Value | None = None

    # small pieces of IR

    @property
    def code(self) -> Code:
        return self.isa.code

    @property
    def hart(self) -> Value:
        """The hart's record, which is the ISA's."""
        return Value("%hart", PtrType(self.isa.hart))

    def hart_field(self, name: str) -> Value:
        return self.builder.field(self.hart, name)

    def get(self, name: str) -> Value:
        return self.builder.load(self.hart_field(name))

    def set(self, name: str, value: Any) -> None:
        self.builder.store(self.hart_field(name), value)

    def slot_field(self, name: str) -> Value:
        return self.builder.load(self.builder.field(Value("%ip", PtrType(self.isa.slot)), name))

    def pc(self) -> Value:
        b = self.builder
        address = b.value(U64, "ptrtoint ptr %ip to i64")
        return b.binary("+", b.binary(">>", address, 3), Value("%bias", U64))

    def register(self, operand: RegisterOperand) -> Value:
        """A pointer to the register that a slot's field names."""
        number = self.builder.convert(self.slot_field(operand.field), U64)
        return self.builder.element(self.hart_field(operand.file), number)

    @property
    def result(self) -> RegisterOperand | None:
        """The register that the semantics' value goes to."""
        assert self.instruction is not None
        found = self.code.operands.get(self.instruction.result or "")
        return found if isinstance(found, RegisterOperand) else None

    def tail(self, target: str, ip: str = "%ip", bias: str = "%bias", tlb: str = "%tlb", n: str = "%n") -> None:
        """Ends the handler in another one."""
        self.builder.line(
            f"musttail call preserve_nonecc void {target}(ptr %hart, ptr {ip}, i64 {bias}, ptr {tlb}, i64 {n})"
        )
        self.builder.end("ret void")

    def dispatch(self, ip: str, n: str, bias: str = "%bias", tlb: str = "%tlb") -> None:
        handler = self.builder.value(PtrType(U8), f"load ptr, ptr {ip}")
        self.tail(handler.ref, ip, bias, tlb, n)

    def advanced(self, offset: int) -> str:
        return self.builder.value(U64, f"getelementptr i8, ptr %ip, i64 {offset}").ref

    def next_count(self) -> Value:
        return self.builder.value(U64, "add i64 %n, 1")

    def check(self, ip: str, n: Value, bias: str = "%bias") -> None:
        """Goes to ``ip`` unless somebody wants the hart's attention."""
        b = self.builder
        wanted = b.compare(">=", n, self.get("stop_at"))
        wanted.hint = UNLIKELY
        look, on = b.fresh("look"), b.fresh("on")
        b.branch(wanted, look, on)
        b.block(look)
        self.tail("@op_attention", ip, bias, n=n.ref)
        b.terminated = True
        b.block(on)
        self.dispatch(ip, n.ref, bias)

    def go_far(self, target: Value) -> None:
        """Goes to a guest address behind this instruction."""
        self.go_to_address(target, self.next_count())

    def go_to_address(self, target: Value, n: Value) -> None:
        """Goes to a guest address with ``n`` instructions retired: by the fetch TLB, or by ``go``."""
        b = self.builder
        index = self.tlb_offset(target, FETCH_ENTRIES)
        entry = b.value(PtrType(U64), f"getelementptr i8, ptr %tlb, i64 {index.ref}")
        entry = b.offset(entry, Tlb.offset_of("fetch"), U64)
        page = b.binary("&", target, ~OFFSET)
        hit = b.compare("==", b.load(entry), page)
        hit.hint = LIKELY
        found, missed = b.fresh("found"), b.fresh("missed")
        b.branch(hit, found, missed)
        b.block(found)
        slots = b.load(b.offset(entry, 8, U64))
        slot = b.binary("+", slots, b.binary("<<", b.binary("&", target, OFFSET), 3))
        ip = b.pointer(slot, U8)
        bias = b.binary("-", page, b.binary(">>", slots, 3))
        self.check(ip.ref, n, bias.ref)
        b.block(missed)
        self.set("pc", target)
        self.set("retired", n)
        self.tail("@op_go", n=n.ref)

    def leave(self) -> None:
        """Leaves for ``go`` before the instruction has happened."""
        self.set("pc", self.pc())
        self.set("retired", Value("%n", U64))
        self.tail("@op_go")

    def leave_if_pending(self) -> None:
        b = self.builder
        pending = b.truth(self.get("pending"))
        pending.hint = UNLIKELY
        out, on = b.fresh("pending"), b.fresh("on")
        b.branch(pending, out, on)
        b.block(out)
        self.leave()
        b.block(on)

    # hooks

    def emit(self, builder: Builder, name: str, args: list[Any]) -> Value | None:
        """The meaning of hooks (see ``semantics``) in a handler."""
        return getattr(self, f"hook_{name}")(*args)  # type: ignore[no-any-return]

    def hook_trap(self, cause: Any, value: Any) -> None:
        self.set("cause", cause)
        self.set("trap_value", self.builder.convert(value, U64))
        self.set("pending", PENDING_TRAP)
        self.leave()

    def hook_drain_posted(self) -> None:
        b = self.builder
        waiting = b.truth(self.get("ring_count"))
        waiting.hint = UNLIKELY
        out, on = b.fresh("drain"), b.fresh("on")
        b.branch(waiting, out, on)
        b.block(out)
        self.drain()
        b.block(on)

    def hook_leave_if_pending(self) -> None:
        self.leave_if_pending()

    def drain(self) -> None:
        """Leaves for Python, which brings posted writes to their devices and runs the instruction again."""
        self.set("exit_reason", EXIT_DRAIN)
        self.set("pending", PENDING_EXIT)
        self.leave()

    def hook_jump(self, target: Any) -> None:
        if self.builder.branches or self.target is not None:
            raise NativeError("an instruction has one jump, which is not inside of if or a loop")
        self.target = self.builder.coerce(target, U64)

    def missed(self) -> None:
        """Ends a fast handler whose address the TLB does not hold: before the instruction has done anything."""
        self.tail(self.slow_twin)

    def tlb_offset(self, address: Value, entries: int) -> Value:
        """How far behind its first entry that for an address is: ``tlb.data_index``, ``fetch_index``."""
        b = self.builder
        again = b.binary("&", b.binary(">>", address, 12 - 4 + FOLD), ~(2 * TlbEntry.size - 1))
        folded = b.binary("^", b.binary(">>", address, 12 - 4), again)
        return b.binary("&", folded, (entries - 1) * TlbEntry.size)

    def locate(self, type_: IntType, address: Value, kind: int, *, aligned: bool = True) -> Value:
        """The host address of a guest address, naturally aligned or else within its page; or no return."""
        b = self.builder
        if not self.slow_twin:
            host = call(b, memory_locate, [self.hart, address, type_.size, kind])
            assert host is not None
            self.leave_if_pending()
            return host
        index = self.tlb_offset(address, TLB_ENTRIES)
        entry = b.value(PtrType(U64), f"getelementptr i8, ptr %tlb, i64 {index.ref}")
        entry = b.offset(entry, Tlb.offset_of("write" if kind == WRITE else "read"), U64)
        if aligned:
            tag = b.binary("&", address, ~(OFFSET & ~(type_.size - 1)))
        else:
            tag = b.binary("&", b.binary("+", address, type_.size - 1), ~OFFSET)
        hit = b.compare("==", b.load(entry), tag)
        hit.hint = LIKELY
        found, missed = b.fresh("hit"), b.fresh("miss")
        b.branch(hit, found, missed)
        b.block(missed)
        self.missed()
        b.terminated = True
        b.block(found)
        return b.binary("+", address, b.load(b.offset(entry, 8, U64)))

    def hook_load(self, type_: IntType, address: Value) -> Value:
        b = self.builder
        if not self.slow_twin:
            value = call(b, memory_read, [self.hart, address, type_.size])
            assert value is not None
            self.leave_if_pending()
            return b.convert(value, type_)
        pointer = b.pointer(self.locate(type_, address, READ, aligned=False), type_)
        # One move of the host's, which does the misaligned too; said to be aligned, or LLVM would call a library.
        return b.value(type_, f"load atomic {type_.ir}, ptr {pointer.ref} monotonic, align {type_.size}")

    def hook_store(self, type_: IntType, address: Value, item: Any) -> None:
        b = self.builder
        value = b.coerce(item, type_)
        if not self.slow_twin:
            call(b, memory_write, [self.hart, address, type_.size, b.convert(value, U64)])
            self.leave_if_pending()
            return
        pointer = b.pointer(self.locate(type_, address, WRITE, aligned=False), type_)
        b.line(f"store atomic {type_.ir} {value.ref}, ptr {pointer.ref} monotonic, align {type_.size}")

    def hook_atomic(self, operation: str, type_: IntType, address: Value, item: Any) -> Value:
        b = self.builder
        value = b.coerce(item, type_)
        pointer = b.pointer(self.locate(type_, address, WRITE), type_)
        old = b.value(type_, f"atomicrmw {operation} ptr {pointer.ref}, {type_.ir} {value.ref} seq_cst")
        self.settle()
        return old

    def settle(self) -> None:
        """Behind a store that the TLB did not answer."""
        if not self.slow_twin:
            call(self.builder, settle_store, [self.hart])

    def host_address(self, pointer: Value) -> Value:
        return self.builder.value(U64, f"ptrtoint ptr {pointer.ref} to i64")

    def hook_load_reserved(self, type_: IntType, address: Value) -> Value:
        b = self.builder
        pointer = b.pointer(self.locate(type_, address, READ), type_)
        value = b.value(type_, f"load atomic {type_.ir}, ptr {pointer.ref} seq_cst, align {type_.size}")
        self.set("reserved_address", self.host_address(pointer))
        self.set("reserved_value", b.convert(value, U64))
        return value

    def hook_store_conditional(self, type_: IntType, address: Value, item: Any) -> Value:
        """Stores if memory still holds what LR saw (as QEMU does): ABA is not noticed, no other hart is ever
        stopped. It is the same memory, by whatever address: a page may have another frame by now."""
        b = self.builder
        value = b.coerce(item, type_)
        pointer = b.pointer(self.locate(type_, address, WRITE), type_)
        valid = b.compare("==", self.get("reserved_address"), self.host_address(pointer))
        expected = b.convert(self.get("reserved_value"), type_)
        self.set("reserved_address", (1 << 64) - 1)
        result = b.variable(U64)
        b.write(result, b.constant(1, U64))
        attempt, done = b.fresh("attempt"), b.fresh("done")
        b.branch(valid, attempt, done)
        b.block(attempt)
        ir = type_.ir
        pair = b.value(type_, f"cmpxchg ptr {pointer.ref}, {ir} {expected.ref}, {ir} {value.ref} seq_cst seq_cst")
        stored = b.value(BOOLEAN, f"extractvalue {{ {ir}, i1 }} {pair.ref}, 1")
        b.write(result, b.convert(b.value(BOOLEAN, f"xor i1 {stored.ref}, true"), U64))
        self.settle()
        b.block(done)
        return b.read(result)

    # operands

    def operand(self, name: str) -> Any:
        """The value of an operand of the instruction."""
        b = self.builder
        match self.code.operands.get(name):
            case RegisterOperand() as register:
                return b.load(self.register(register))
            case BitsOperand(low, width):
                return b.binary("&", b.binary(">>", self.bits(), low), (1 << width) - 1)
            case Operand.IMMEDIATE:
                return Value(b.convert(self.slot_field("imm"), I64).ref, I64)
            case Operand.HART:
                return self.hart
            case Operand.PC:
                return self.pc()
            case Operand.NEXT_PC:
                return b.binary("+", self.pc(), self.length)
            case Operand.RETIRED:
                return Value("%n", U64)
            case Operand.BITS:
                return Lazy(self.bits)
        raise NativeError(f"{name} is no operand")

    def bits(self) -> Value:
        """The instruction's own bits, loaded where they are used."""
        b = self.builder
        assert self.instruction is not None
        if self.instruction.immediate is None:
            return b.convert(Value(self.slot_field("imm").ref, U32), U64)
        value = call(b, instruction_bits, [self.hart, b.value(U64, "ptrtoint ptr %ip to i64")])
        assert value is not None
        return value

    def semantics(self) -> Value | None:
        """The instruction's semantics, inlined; gives its result."""
        assert self.instruction is not None
        function = self.instruction.semantics
        bound = {name: self.operand(name) for name in self.instruction.operands}
        return Frame(self.builder, function, bound, inlined=True).run()


class Interpreter:
    """Emits all handlers of an ISA and the runtime into a module."""

    def __init__(self, isa: Isa, controllers: Native) -> None:
        self.isa = isa
        self.controllers = controllers
        bindings = {Hart: isa.hart, Slot: isa.slot, **isa.code.bindings, **controllers.bindings}
        self.module = Module(bindings=bindings)
        self.module.check_bindings()

    def define(self, name: str, handler: Handler) -> None:
        linkage = "dso_local" if not name.endswith("_slow") else "internal"
        self.module.functions.append(
            f"define {linkage} preserve_nonecc void @{name}{SIGNATURE} #0 {{\n{handler.builder.text()}\n}}\n"
        )

    def handler(self, **known: Any) -> Handler:
        builder = Builder(self.module)
        handler = Handler(builder, self.isa, **known)
        builder.environment = handler
        return handler

    def plain(self, variant: Variant) -> None:
        """A handler that goes on behind the instruction or jumps; and its slow twin where it accesses memory."""
        instruction, name = variant.instruction, variant.name
        for slow in (False, True):
            twin = f"{name}_slow"
            handler = self.handler(instruction=instruction, length=variant.length, slow_twin="" if slow else f"@{twin}")
            b = handler.builder
            if instruction.system:
                handler.set("pc", handler.pc())
                handler.set("retired", Value("%n", U64))
            result = handler.semantics()
            if not b.terminated:
                if variant.way is Way.CHECKED:
                    assert handler.target is not None
                    wrong = b.compare("!=", b.binary("&", handler.target, self.isa.code.jump_alignment - 1), 0)
                    misaligned, on = b.fresh("misaligned"), b.fresh("on")
                    b.branch(wrong, misaligned, on)
                    b.block(misaligned)
                    handler.hook_trap(self.isa.code.jump_cause, handler.target)
                    b.block(on)
                if result is not None and handler.result is not None:
                    b.store(handler.register(handler.result), result)
                if handler.target is not None and not instruction.system:
                    handler.go_far(handler.target)
                elif instruction.system:
                    self.after_system(handler)
                else:
                    handler.dispatch(handler.advanced(SLOT_BYTES * variant.length // 2), handler.next_count().ref)
            self.define(twin if slow else name, handler)
            if not slow and twin not in b.text():
                break

    def after_system(self, handler: Handler) -> None:
        """Goes on as usual, or by the record if the instruction changed what later ones mean."""
        b = handler.builder
        n = handler.next_count()
        if handler.target is None:
            changed = b.truth(handler.get("changed"))
            again, on = b.fresh("again"), b.fresh("on")
            b.branch(changed, again, on)
            b.block(on)
            handler.dispatch(handler.advanced(SLOT_BYTES * handler.length // 2), n.ref)
            b.block(again)
        handler.set("changed", 0)
        handler.set("pc", handler.target or b.binary("+", handler.pc(), handler.length))
        handler.set("retired", n)
        handler.tail("@op_go", n=n.ref)

    def relative(self, variant: Variant) -> None:
        """A jump to pc + imm, by where that is."""
        handler = self.handler(instruction=variant.instruction, length=variant.length)
        b = handler.builder
        result = handler.semantics()
        if variant.instruction.flow is Flow.BRANCH:
            assert result is not None
            taken, passed = b.fresh("taken"), b.fresh("passed")
            b.branch(result, taken, passed)
            b.block(passed)
            handler.dispatch(handler.advanced(SLOT_BYTES * variant.length // 2), handler.next_count().ref)
            b.block(taken)
        elif result is not None and handler.result is not None and variant.way is not Way.MISALIGNED:
            b.store(handler.register(handler.result), result)
        imm = b.convert(handler.slot_field("imm"), I64)
        if variant.way is Way.MISALIGNED:
            handler.hook_trap(self.isa.code.jump_cause, b.binary("+", handler.pc(), Value(imm.ref, U64)))
        elif variant.way is Way.FAR:
            handler.go_far(b.binary("+", handler.pc(), Value(imm.ref, U64)))
        else:
            ip = b.value(U64, f"getelementptr i8, ptr %ip, i64 {imm.ref}").ref
            n = handler.next_count()
            if variant.way is Way.BACKWARD:
                handler.check(ip, n)
            else:
                handler.dispatch(ip, n.ref)
        self.define(variant.name, handler)

    def support(self) -> None:
        """The handlers that are no instruction."""
        module = self.module
        # go: from the record to the next instruction, or back to Python
        handler = self.handler()
        b = handler.builder
        call(b, go, [handler.hart])
        leaving = b.truth(handler.get("exit_reason"))
        out, on = b.fresh("out"), b.fresh("on")
        b.branch(leaving, out, on)
        b.block(out)
        b.end("ret void")
        b.block(on)
        ip = b.pointer(handler.get("ip"), U8)
        tlb = b.pointer(handler.get("tlb"), U8)
        handler.dispatch(ip.ref, handler.get("retired").ref, handler.get("bias").ref, tlb.ref)
        self.define("op_go", handler)
        # attention: somebody set stop_at
        handler = self.handler()
        handler.set("pc", handler.pc())
        handler.set("retired", Value("%n", U64))
        call(handler.builder, attention, [handler.hart, handler.builder.value(U64, "ptrtoint ptr %ip to i64")])
        handler.tail("@op_go")
        self.define("op_attention", handler)
        # page end: sequential flow into the next page
        handler = self.handler()
        handler.set("pc", handler.pc())
        handler.set("retired", Value("%n", U64))
        handler.tail("@op_go")
        self.define("op_page_end", handler)
        # straddle: an instruction of which the second half is in the next page
        # breakpoint: in the slot of an instruction before which the hart may have to stop
        for name, find_slot in (("op_straddle", single), ("op_breakpoint", at_breakpoint)):
            handler = self.handler()
            handler.set("pc", handler.pc())
            handler.set("retired", Value("%n", U64))
            b = handler.builder
            slot = call(b, find_slot, [handler.hart, handler.pc()])
            assert slot is not None
            none, on = b.fresh("none"), b.fresh("on")
            b.branch(b.compare("==", slot, 0), none, on)
            b.block(none)
            handler.tail("@op_go")
            b.block(on)
            handler.dispatch(b.pointer(slot, U8).ref, "%n", handler.get("bias").ref)
            self.define(name, handler)
        # decode: a slot that is run for the first time
        handler = self.handler()
        b = handler.builder
        call(b, decode_slot, [handler.hart, b.value(U64, "ptrtoint ptr %ip to i64"), handler.pc()])
        leaving = b.truth(handler.get("exit_reason"))
        out, on = b.fresh("out"), b.fresh("on")
        b.branch(leaving, out, on)
        b.block(out)
        handler.leave()
        b.block(on)
        handler.dispatch("%ip", "%n")
        self.define("op_decode", handler)
        # enter: called by run
        text = "  call preserve_nonecc void @op_go(ptr %hart, ptr null, i64 0, ptr null, i64 0)\n  ret void"
        module.functions.append(f"define internal void {module.symbol(enter, 'enter')}(ptr %hart) #0 {{\n{text}\n}}\n")
        for export in (*EXPORTS, *self.isa.code.exports, *self.controllers.exports):
            module.function(export)

    def emit(self) -> tuple[str, list[str]]:
        """The module's text, and the handlers' names in the order of their numbers ('' for those that do not exist)."""
        self.support()
        names = [""] * (1 + max(variant.number for variant in self.isa.code.variants))
        for variant in self.isa.code.variants:
            names[variant.number] = variant.name
            if variant.instruction.is_relative:
                self.relative(variant)
            else:
                self.plain(variant)
        return self.module.text(), names
