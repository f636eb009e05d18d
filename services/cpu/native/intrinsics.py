"""What LLVM is told for each intrinsic of the language (see ``lang``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .builder import Builder
from .host import HOST
from .lang import IntType, PtrType
from .values import BOOLEAN, LIKELY, U32, U64, UNLIKELY, NativeError, Value

_DECLARATIONS = (
    *(
        f"declare i{bits} @llvm.{name}.i{bits}(i{bits}, i1)"
        for name in ("ctlz", "cttz")
        for bits in (8, 16, 32, 64, 128)
    ),
    *(f"declare i{bits} @llvm.ctpop.i{bits}(i{bits})" for bits in (8, 16, 32, 64, 128)),
    *(f"declare {t} @llvm.sqrt.f{b}({t})" for t, b in (("float", 32), ("double", 64))),
    *(f"declare {t} @llvm.fma.f{b}({t}, {t}, {t})" for t, b in (("float", 32), ("double", 64))),
    *(f"declare i{bits} @llvm.bswap.i{bits}(i{bits})" for bits in (16, 32, 64)),
)
#: By what a call of it looks like.
INTRINSIC_DECLARATIONS = {line[line.index("@") : line.index("(") + 1]: line for line in _DECLARATIONS}


def _pointer(builder: Builder, address: Any) -> str:
    return builder.pointer(address, U64).ref


def _peek(builder: Builder, args: list[Any], order: str = "") -> Value:
    type_, address = args
    mode = f" {order}, align {type_.size}" if order else ", align 1"
    return builder.value(type_, f"load{' atomic' if order else ''} {type_.ir}, ptr {_pointer(builder, address)}{mode}")


def _poke(builder: Builder, args: list[Any], order: str = "") -> None:
    type_, address, item = args
    value = builder.coerce(item, type_)
    mode = f" {order}, align {type_.size}" if order else ", align 1"
    atomic = " atomic" if order else ""
    builder.line(f"store{atomic} {type_.ir} {value.ref}, ptr {_pointer(builder, address)}{mode}")


def _rmw(builder: Builder, args: list[Any]) -> Value:
    operation, type_, address, item = args
    if operation not in ("xchg", "add", "and", "or", "xor", "max", "min", "umax", "umin"):
        raise NativeError(f"atomic_rmw has no {operation!r}")
    value = builder.coerce(item, type_)
    return builder.value(
        type_, f"atomicrmw {operation} ptr {_pointer(builder, address)}, {type_.ir} {value.ref} seq_cst"
    )


def _compare_exchange(builder: Builder, args: list[Any]) -> Value:
    type_, address, expected, new = args
    old, value = builder.coerce(expected, type_), builder.coerce(new, type_)
    pair = builder.value(
        type_, f"cmpxchg ptr {_pointer(builder, address)}, {type_.ir} {old.ref}, {type_.ir} {value.ref} seq_cst seq_cst"
    )
    return builder.value(type_, f"extractvalue {{ {type_.ir}, i1 }} {pair.ref}, 0")


def _bits(name: str, flag: str = "") -> Callable[[Builder, list[Any]], Value]:
    def emit(builder: Builder, args: list[Any]) -> Value:
        if not isinstance(args[0], Value) or not isinstance(args[0].type, IntType) or args[0].type == BOOLEAN:
            raise NativeError(f"{name} of {getattr(args[0], 'type', args[0])}")
        ir = args[0].type.ir
        if f"@llvm.{name}.{ir}(" not in INTRINSIC_DECLARATIONS:
            raise NativeError(f"{name} of {args[0].type}")
        return builder.value(args[0].type, f"call {ir} @llvm.{name}.{ir}({ir} {args[0].ref}{flag})")

    return emit


def _hint(weights: str) -> Callable[[Builder, list[Any]], Value]:
    def emit(builder: Builder, args: list[Any]) -> Value:
        return Value(builder.truth(args[0]).ref, BOOLEAN, weights)

    return emit


def _call_host(builder: Builder, args: list[Any]) -> Value:
    function, *rest = args
    values = ", ".join(f"i64 {builder.convert(arg, U64).ref}" for arg in rest)
    return builder.value(U64, f"call i64 {_pointer(builder, function)}({values})")


def _float_operation(builder: Builder, args: list[Any]) -> Value:
    name, width, *operands = args
    if {"fadd": 2, "fsub": 2, "fmul": 2, "fdiv": 2, "sqrt": 1, "fma": 3}.get(name) != len(operands):
        raise NativeError(f"float_operation has no {name!r} of {len(operands)} operands")
    type_ = {32: "float", 64: "double"}[width]
    bits: IntType = {32: U32, 64: U64}[width]
    values = []
    for operand in operands:
        raw = builder.convert(builder.coerce(operand, U64), bits)
        values.append(builder.value(bits, f"bitcast {bits.ir} {raw.ref} to {type_}").ref)
    if name in ("sqrt", "fma"):
        given = ", ".join(f"{type_} {value}" for value in values)
        result = builder.value(bits, f"call {type_} @llvm.{name}.f{width}({given})")
    else:
        result = builder.value(bits, f"{name} {type_} {', '.join(values)}")
    return builder.convert(builder.value(bits, f"bitcast {type_} {result.ref} to {bits.ir}"), U64)


INTRINSICS: dict[str, Callable[[Builder, list[Any]], Any]] = {
    "float_operation": _float_operation,
    "peek": _peek,
    "poke": _poke,
    "peek_aligned": lambda b, args: _peek(b, args, "monotonic"),
    "poke_aligned": lambda b, args: _poke(b, args, "monotonic"),
    "at": lambda b, args: b.pointer(args[1], args[0].target if isinstance(args[0], PtrType) else args[0]),
    "atomic_load": lambda b, args: _peek(b, args, "seq_cst"),
    "atomic_store": lambda b, args: _poke(b, args, "seq_cst"),
    "atomic_rmw": _rmw,
    "compare_exchange": _compare_exchange,
    "fence": lambda b, args: b.line("fence seq_cst"),
    "clz": _bits("ctlz", ", i1 false"),
    "ctz": _bits("cttz", ", i1 false"),
    "popcount": _bits("ctpop"),
    "quotient": lambda b, args: b.divide("div", args[0], args[1]),
    "remainder": lambda b, args: b.divide("rem", args[0], args[1]),
    "byte_swap": _bits("bswap"),
    "likely": _hint(LIKELY),
    "unlikely": _hint(UNLIKELY),
    "call_host": _call_host,
    "cpu_relax": lambda b, args: b.line(f'call void asm sideeffect "{HOST.relax}", ""()'),
}
