"""The language of native functions: what it computes, what it refuses and how it says so."""

# ruff: noqa: RET503  # a function that may end without a result is what one test is about

from __future__ import annotations

import ctypes
import inspect
import random
from collections.abc import Callable
from typing import Any

import pytest

from vmesh_services.cpu.core.state import Machine
from vmesh_services.cpu.isa.riscv.state import Hart
from vmesh_services.cpu.native import lang
from vmesh_services.cpu.native.blob import Blob
from vmesh_services.cpu.native.build import BuildError, build
from vmesh_services.cpu.native.compiler import Module, NativeError
from vmesh_services.cpu.native.lang import (
    Dispatch,
    NativeException,
    NativeOnly,
    Ptr,
    Record,
    Table,
    array,
    at,
    atomic_load,
    atomic_rmw,
    atomic_store,
    byte_swap,
    call_host,
    clz,
    cold,
    compare_exchange,
    ctz,
    export,
    hook,
    i8,
    i16,
    i32,
    i64,
    i128,
    inline,
    likely,
    native,
    peek,
    poke,
    popcount,
    quotient,
    ref,
    remainder,
    u8,
    u16,
    u32,
    u64,
    u128,
    unlikely,
)
from vmesh_services.cpu.native.view import view

MASK = (1 << 64) - 1
MINIMUM = 1 << 63


#: Code is unmapped with its blob.
_alive: list[Blob] = []


def compiled(*functions: Any) -> list[Callable[..., int]]:
    """Exports as Python callables of 64-bit arguments."""
    module = Module()
    for function in functions:
        module.function(function)
    code = build(module.text())
    blob = Blob(code.image, code.symbols)
    _alive.append(blob)
    return [blob.function(f.name, len(inspect.signature(f.python).parameters)) for f in functions]


def refused(function: Any, line: int, said: str) -> None:
    """Compilation fails with the file, the line (within the function) and the reason."""
    first = inspect.getsourcelines(function.python)[1]
    module = Module()
    module.function(function)
    with pytest.raises(NativeError) as caught:
        module.text()
    message = str(caught.value)
    assert message.startswith(f"{__file__}:{first + line}: "), message
    assert said in message


# integers


@export
def arithmetic(a: u64, b: u64, c: u64) -> u64:
    return (a + b) * c - (a & b | c ^ a)


@export
def narrow(a: u64) -> u64:
    byte = u8(a)
    byte += 200
    half = u16(byte) * 300
    return u64(half)


@export
def signed_division(a: u64, b: u64) -> u64:
    return u64(quotient(i64(a), i64(b)))


@export
def signed_remainder(a: u64, b: u64) -> u64:
    return u64(remainder(i64(a), i64(b)))


@export
def unsigned_division(a: u64, b: u64) -> u64:
    return a // b * 1000 + a % b


@export
def conversions(a: u64) -> u64:
    return u64(i8(a)) + u64(i16(u8(a))) * 3 + u64(i32(u32(a))) * 5 + u64(u32(i32(a))) * 7


@export
def wide(a: u64, b: u64) -> u64:
    return u64((i128(i64(a)) * i128(i64(b))) >> 64) ^ u64((u128(a) * u128(b)) >> 64)


@export
def shifts(a: u64, n: u64) -> u64:
    return u64(i64(a) >> n) ^ (a >> n) ^ (a << n) ^ u64(i32(a) >> (n & 31)) ^ (1 << n)


@export
def comparisons(a: u64, b: u64) -> u64:
    result = u64(a < b) | u64(a <= b) << 1 | u64(a == b) << 2 | u64(a != b) << 3
    return result | u64(i64(a) > i64(b)) << 4 | u64(i64(a) >= i64(b)) << 5 | u64(not a < b) << 6


@export
def unary(a: u64) -> u64:
    return -a ^ ~(a >> 1)


@export
def bits(a: u64) -> u64:
    return clz(a) | ctz(a) << 8 | popcount(a) << 16 | u64(clz(u32(a))) << 24 | u64(ctz(u8(a))) << 32


@export
def swapped(a: u64) -> u64:
    return byte_swap(a) ^ u64(byte_swap(u32(a)))


def s(value: int, width: int = 64) -> int:
    """Two's complement."""
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


def truncated(a: int, b: int) -> int:
    """Division as machines do it."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


VALUES = (
    0,
    1,
    2,
    7,
    63,
    255,
    256,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    MINIMUM - 1,
    MINIMUM,
    MINIMUM + 1,
    MASK - 6,
    MASK,
)


def test_arithmetic_wraps_and_converts() -> None:
    functions = compiled(arithmetic, narrow, conversions, wide, unary, swapped)
    plain, narrowed, converted, product, negated, reversed_ = functions
    r = random.Random(1)
    for a in (*VALUES, *(r.getrandbits(64) for _ in range(50))):
        b, c = r.getrandbits(64), r.choice(VALUES)
        assert plain(a, b, c) == ((a + b) * c - (a & b | c ^ a)) & MASK
        assert narrowed(a) == (((a & 255) + 200) & 255) * 300 & 0xFFFF
        low = s(a, 8) + s(a & 255, 16) * 3 + s(a, 32) * 5 + (a & 0xFFFF_FFFF) * 7
        assert converted(a) == low & MASK
        assert product(a, b) == ((s(a) * s(b) >> 64) ^ (a * b >> 64)) & MASK
        assert negated(a) == (-a ^ ~(a >> 1)) & MASK
        whole = int.from_bytes(a.to_bytes(8, "little"), "big")
        assert reversed_(a) == whole ^ int.from_bytes((a & 0xFFFF_FFFF).to_bytes(4, "little"), "big")


def test_quotients_are_truncated_and_signedness_belongs_to_the_type() -> None:
    quotient, remainder, both = compiled(signed_division, signed_remainder, unsigned_division)
    for a in VALUES:
        for b in VALUES[1:]:
            assert both(a, b) == (a // b * 1000 + a % b) & MASK
            if (a, b) != (MINIMUM, MASK):
                assert quotient(a, b) == truncated(s(a), s(b)) & MASK
                assert remainder(a, b) == (s(a) - truncated(s(a), s(b)) * s(b)) & MASK


def test_shifts_and_comparisons() -> None:
    shifted, compared, counted = compiled(shifts, comparisons, bits)
    for a in VALUES:
        for n in (0, 1, 31, 32, 63):
            expected = (s(a) >> n) ^ (a >> n) ^ (a << n) ^ (s(a, 32) >> (n & 31)) ^ (1 << n)
            assert shifted(a, n) == expected & MASK
        for b in VALUES:
            flags = [a < b, a <= b, a == b, a != b, s(a) > s(b), s(a) >= s(b), not a < b]
            assert compared(a, b) == sum(flag << n for n, flag in enumerate(flags))
        trailing = (a & -a).bit_length() - 1 if a else 64
        low = a & 255
        low_trailing = (low & -low).bit_length() - 1 if low else 8
        short = 32 - (a & 0xFFFF_FFFF).bit_length()
        counts = (64 - a.bit_length(), trailing, a.bit_count(), short, low_trailing)
        assert counted(a) == sum(count << 8 * n for n, count in enumerate(counts))


# control flow


@export
def collatz(n: u64) -> u64:
    steps = u64(0)
    while n != 1:
        if n % 2 == 0:
            n //= 2
        else:
            n = 3 * n + 1
        steps += 1
    return steps


@export
def loops(limit: u64) -> u64:
    total = u64(0)
    for i in range(limit):
        if i == 3:
            continue
        for j in range(i, i + 5):
            if j > 12:
                break
            total += i * 100 + j
        if total > 100_000:
            return total
    return total


@export
def classify(a: u64) -> u64:
    if a < 10:
        return 1
    elif a < 100 and a != 50:
        result = u64(2)
    elif a == 50 or a > 1000:
        result = u64(3)
    else:
        result = u64(4)
    return result * 10


@export
def chosen(a: u64, b: u64) -> u64:
    small = a if a < b else b
    nested = (1 if a == 0 else 2) if b == 0 else (3 if a == 0 else 4)
    return small * 10 + nested + u64(a > 5 and b > 5) * 1000 + u64(a > 5 or not b > 5) * 2000


@export
def divides(a: u64, b: u64) -> u64:
    """The right side is not evaluated where the left one decides: a division by 0 would end the process."""
    if b != 0 and a // b == 2:
        return 1
    if b == 0 or a // b == 3:
        return 2
    return 3 if b != 0 and a % b == 1 else 4


@export
def shifted_far(a: u64, n: u64) -> u64:
    return (a << n) ^ (a >> n) ^ u64(i64(a) >> n) ^ u64(u8(a) << n)


@export
def known_together(a: u64) -> u64:
    """Of three known parts the second one decides."""
    if FIVE and FLAG and FIVE:
        a += 1000
    if FLAG or FIVE or FLAG:
        a += 1
    return a + (7 if FIVE and FLAG and FIVE else 3) + u64(-7 // 2)


@export
def last_of_a_loop(a: u64) -> u64:
    last = u64(100)
    for last in range(a):  # noqa: B007
        a = u64(0)
    total = u64(0)
    for i in range(4):
        total += i
        i += 7
    return last * 1000 + total * 10 + a


@export
def once(address: u64) -> u64:
    at(Ptr[u64], address)[taken(address)] += 10
    return 0


@native
def taken(address: u64) -> u64:
    poke(u64, address + 16, peek(u64, address + 16) + 1)
    return 1


@export
def forever(a: u64) -> u64:
    while True:
        a += 1
        if a % 10 == 0:
            return a


@export
def hinted(a: u64) -> u64:
    if likely(a > 5):
        return 1
    if unlikely(a == 5):
        return 2
    return 3


def test_loops_and_branches() -> None:
    functions = compiled(collatz, loops, classify, chosen, divides, forever, hinted)
    count, nested, kind, choice, short, endless, hints = functions

    def python_loops(limit: int) -> int:
        total = 0
        for i in range(limit):
            if i == 3:
                continue
            for j in range(i, i + 5):
                if j > 12:
                    break
                total += i * 100 + j
        return total

    assert [count(n) for n in (1, 2, 3, 27)] == [0, 1, 7, 111]
    assert [nested(n) for n in (0, 1, 3, 4, 5, 20)] == [python_loops(n) for n in (0, 1, 3, 4, 5, 20)]
    assert [kind(a) for a in (0, 9, 10, 50, 99, 100, 1000, 1001)] == [1, 1, 20, 30, 20, 40, 40, 30]
    for a in (0, 3, 6, 9):
        for b in (0, 3, 6, 9):
            expected = min(a, b) * 10 + [[1, 2], [3, 4]][b != 0][a != 0]
            assert choice(a, b) == expected + 1000 * (a > 5 and b > 5) + 2000 * (a > 5 or b <= 5)
    assert [short(4, 2), short(9, 3), short(9, 0), short(9, 4), short(8, 2)] == [1, 2, 2, 1, 4]
    assert [endless(a) for a in (0, 9, 10)] == [10, 10, 20]
    assert [hints(a) for a in (9, 5, 1)] == [1, 2, 3]


def test_what_is_accepted_means_what_it_means_in_python() -> None:
    far, known, last, one = compiled(shifted_far, known_together, last_of_a_loop, once)
    for a in VALUES:
        for n in (0, 7, 8, 63, 64, 65, 255, 256, 1 << 32, MASK):
            gone = 0 if n > 63 else a << n
            expected = gone ^ (a >> n) ^ (s(a) >> n) ^ ((a & 255) << min(n, 64) & 255)
            assert far(a, n) == expected & MASK, (a, n)
    assert known(10) == 10 + 1 + 3 - 4
    assert [last(a) for a in (0, 3)] == [100_000 + 60, 2_000 + 60]
    memory = (ctypes.c_uint64 * 3)(1, 2, 3)
    one(ctypes.addressof(memory))
    assert list(memory) == [1, 12, 4], "the index is computed once"


# functions


@native
def fibonacci(n: u64) -> u64:
    if n < 2:
        return n
    return fibonacci(n - 1) + fibonacci(n - 2)


@export
def call_fibonacci(n: u64) -> u64:
    return fibonacci(n)


@inline
def clamp(value: u64, low: u64, high: u64) -> u64:
    if value < low:
        return low
    while value > high:
        value -= 1
        if value == 77:
            return 7
    return value


@export
def inlined(a: u64) -> u64:
    value = a
    # the parameter that the inlined function assigns to is its own
    return clamp(a, 10, 20) * 1000 + clamp(value + 1, 15, 30) + (value - a)


def adder(amount: int) -> Callable[[int], int]:
    @inline
    def add(value: u64) -> u64:
        if amount > 100:
            return value + unknown_name  # type: ignore[name-defined, no-any-return]  # noqa: F821  # never compiled: the test is known when compiling
        return value + amount

    return add


add_five = adder(5)
FLAG = False
FIVE = 5


@export
def with_closure(a: u64) -> u64:
    result = add_five(a)
    if FLAG:
        result = no_such_function(result)  # type: ignore[name-defined]  # noqa: F821
    if not FLAG:
        result += 1
    return result


@cold
def remember(address: u64, value: u64) -> None:
    if value == 0:
        return
    poke(u64, address, peek(u64, address) + value)


@export
def by_number(number: u64, value: u64) -> u64:
    return CASES(number, value)


@native
def doubled(value: u64) -> u64:
    return value * 2


@native
def squared(value: u64) -> u64:
    return value * value


@native
def unchanged(value: u64) -> u64:
    return value


CASES: Callable[[int, int], int] = Dispatch({1: doubled, 7: squared, 900: unchanged}, doubled)
SQUARES = Table(lang.u16, tuple(n * n for n in range(256)))
SIGNED = Table(lang.i32, (-1, -2, 3))


@export
def looked_up(n: u64) -> u64:
    return u64(SQUARES[n]) * 10 + u64(SIGNED[n % 3]) + SQUARES.values[2]


@export
def remembered(address: u64, n: u64) -> u64:
    for i in range(n):
        remember(address, i)
    return peek(u64, address)


def test_functions_closures_tables_and_dispatch() -> None:
    functions = compiled(call_fibonacci, inlined, with_closure, by_number, looked_up, remembered)
    fib, inline_calls, closure, dispatch, table, memory = functions
    assert fib(20) == 6765
    assert [inline_calls(a) for a in (0, 14, 25, 90)] == [10_015, 14_015, 20_026, 7_007]
    assert closure(10) == 16
    assert [dispatch(n, 9) for n in (1, 7, 900, 0, 8, MASK)] == [18, 81, 9, 18, 18, 18]
    assert [table(n) for n in (0, 1, 2, 255)] == [(n * n * 10 + (-1, -2, 3)[n % 3] + 4) & MASK for n in (0, 1, 2, 255)]
    cell = ctypes.c_uint64(100)
    assert memory(ctypes.addressof(cell), 5) == 110 == cell.value


# records and memory


class Inner(Record):
    tag: u16
    wide: u64


class Outer(Record):
    first: u8
    second: u32
    third: u16
    fourth: i64
    items: Ptr[u16] = array(u16, 3)
    inner: Ptr[Inner] = array(Inner, 2)
    last: u8


@export
def fill(record: Outer, value: u64) -> u64:
    record.first = u8(value)
    record.second = u32(value) + 1
    record.third += 7
    record.fourth = i64(value) * -1
    for i in range(3):
        record.items[i] = u16(value + i)
    pair = record.inner[1]
    pair.tag = 0xFFFF
    pair.wide = value << 1
    record.inner[0].wide |= 0x10
    record.last = u8(record.items[2]) ^ record.first
    return ref(record.inner[1]) - ref(record)


@export
def through_pointers(address: u64) -> u64:
    record = at(Outer, address)
    halves = at(Ptr[u16], ref(record.items))
    halves[0] = halves[1] + halves[2]
    return u64(halves[0]) + u64(getattr(record, "last"))  # noqa: B009


@export
def atomics(address: u64) -> u64:
    old = atomic_rmw("add", u32, address, 5)
    missed = compare_exchange(u32, address, 1, 99)
    hit = compare_exchange(u32, address, old + 5, 50)
    atomic_store(u16, address + 4, 0xBEEF)
    return u64(old) | u64(missed) << 16 | u64(hit) << 32 | u64(atomic_load(u16, address + 4)) << 48


@export
def host(function: u64, value: u64) -> u64:
    return call_host(function, value, 3) + 1


def test_records_are_the_same_bytes_for_python() -> None:
    fill_record, pointers = compiled(fill, through_pointers)
    memory = bytearray(Outer.size)
    record = view(Outer, memory)
    address = ctypes.addressof(record)
    record.third = 65_530
    record.inner[0].wide = 1
    assert fill_record(address, 300) == Outer.offset_of("inner") + Inner.size
    assert (record.first, record.second, record.third, record.fourth) == (44, 301, 1, -300)
    assert list(record.items) == [300, 301, 302]
    assert (record.inner[0].tag, record.inner[0].wide) == (0, 0x11)
    assert (record.inner[1].tag, record.inner[1].wide) == (0xFFFF, 600)
    assert record.last == (302 & 255) ^ 44
    assert pointers(address) == 603 + record.last
    assert record.items[0] == 603


def test_layouts() -> None:
    assert [Outer.offset_of(name) for name in Outer.fields] == [0, 4, 8, 16, 24, 32, 64]
    assert (Outer.size, Inner.size) == (72, 16)
    for record in (Outer, Hart, Machine):
        made = view(record, bytearray(record.size))
        assert ctypes.sizeof(made) == record.size
        for name, (offset, _) in record.fields.items():
            assert getattr(type(made), name).offset == offset, name


def test_atomics_and_calls_of_the_host() -> None:
    together, outside = compiled(atomics, host)
    memory = (ctypes.c_uint32 * 2)(10, 0)
    assert together(ctypes.addressof(memory)) == 10 | 15 << 16 | 15 << 32 | 0xBEEF << 48
    assert memory[0] == 50
    multiply = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)(lambda a, b: a * b)
    assert outside(ctypes.cast(multiply, ctypes.c_void_p).value or 0, 14) == 43


# what is refused


@export
def mixed(a: u64, b: u32) -> u64:
    return a + b


@export
def wrong_comparison(a: u64, b: u64) -> u64:
    c = i64(a)
    if c < b:
        return 1
    return 0


@export
def wrong_assignment(a: u64) -> u64:
    value = u32(a)
    value = a
    return u64(value)


@export
def too_large(a: u64) -> u64:
    b = u8(a)
    return u64(b + 256)


@export
def wrong_result(a: u64) -> u64:
    return u32(a)


@export
def no_result(a: u64) -> u64:  # type: ignore[return]
    if a == 0:
        return 1


@export
def unexpected_result(a: u64) -> None:
    return a  # type: ignore[return-value]


@export
def unknown(a: u64) -> u64:
    return a + nothing_of_this_name  # type: ignore[name-defined, no-any-return]  # noqa: F821


@export
def unknown_field(record: Outer) -> u64:
    return record.fifth  # type: ignore[attr-defined, no-any-return]


@export
def too_few_arguments(a: u64) -> u64:
    return clamp(a, 1)  # type: ignore[call-arg]


@export
def chained(a: u64) -> u64:
    return u64(1 < a < 5)


@export
def power(a: u64) -> u64:
    return a**2


@export
def membership(a: u64) -> u64:
    return u64(a in SQUARES)  # type: ignore[operator]


@export
def two_targets(a: u64) -> u64:
    b, c = SQUARES  # type: ignore[misc]
    return b + c + a  # type: ignore[has-type, no-any-return]


@export
def float_literal(a: u64) -> u64:
    return a + 1.5  # type: ignore[return-value]


@export
def stepping(a: u64) -> u64:
    total = u64(0)
    for i in range(0, a, 2):
        total += i
    return total


@export
def to_boolean(a: u64) -> u64:
    return u64(lang.boolean(a))


@export
def python_function(a: u64) -> u64:
    return len(a)  # type: ignore[arg-type]


@export
def traps(a: u64) -> u64:
    raise ValueError(a)


@hook
def somewhere(a: int) -> int:
    raise NativeOnly


@export
def hooked(a: u64) -> u64:
    return somewhere(a)


@export
def listing(a: u64) -> u64:
    values = [a, a]
    return values[0]


@export
def trying(a: u64) -> u64:
    try:
        return a
    except ValueError:
        return 0


@inline
def refused_inside(a: u64) -> u64:
    return a + u32(a)


@export
def calls_what_is_refused(a: u64) -> u64:
    return refused_inside(a)


@export
def with_else(a: u64) -> u64:
    for i in range(a):
        if i > 5:
            break
    else:
        a = u64(777)
    return a


@export
def while_with_else(a: u64) -> u64:
    while a > 5:
        a -= 1
        if a == 9:
            break
    else:
        a = u64(777)
    return a


@export
def by_keyword(a: u64) -> u64:
    return clamp(a, 1, high=5)


@export
def converted_by_keyword(a: u64) -> u64:
    return u64(a, base=3)  # type: ignore[call-overload, no-any-return]


@export
def two_converted(a: u64) -> u64:
    return u64(a, 7)  # type: ignore[call-overload, no-any-return]


@export
def intrinsic_with_more(a: u64) -> u64:
    return clz(a, a)  # type: ignore[call-arg]


@export
def signed_floor(a: u64) -> u64:
    return u64(i64(a) // 2)


@export
def signed_modulo(a: u64) -> u64:
    return u64(i64(a) % 2)


@export
def true_division(a: u64) -> u64:
    return a / 2  # type: ignore[return-value]


@export
def divided_by_nothing(a: u64) -> u64:
    return a // 0


@export
def divided_too_wide(a: u64) -> u64:
    return u64(u128(a) // 3)


@export
def below_nothing(a: u64) -> u64:
    return u64(a > -1)


@export
def negative_variable(a: u64) -> u64:
    b = -1
    return a + b


@export
def above_signed(a: u64) -> u64:
    return u64(i8(a) < 200)


@export
def shifted_out(a: u64) -> u64:
    return a << 64


@export
def sum_of_truths(a: u64) -> u64:
    return u64((a > 1) + (a > 2))


@export
def inverse_truth(a: u64) -> u64:
    return u64(~(a > 1))


@export
def which_of_two(a: u64, b: u64) -> u64:
    return a or b


@export
def maybe_without(a: u64) -> u64:
    if a > 1:
        b = a
    return b


@export
def without_in_a_loop(a: u64) -> u64:
    while a > 1:
        b = a
        a -= 1
    return b


@export
def after_its_loop(a: u64) -> u64:
    for i in range(a):
        a += i
    return i


@export
def before_it_is(a: u64) -> u64:
    MASK += a  # noqa: F823
    return MASK


@export
def from_the_end(a: u64) -> u64:
    return u64(SQUARES[i64(a)])


@export
def whole_array(record: Outer) -> u64:
    record.items = u16(3)  # type: ignore[assignment]
    return 1


@export
def with_a_cause(a: u64) -> u64:
    raise NativeException(a) from None


@native
def has_default(a: u64, b: u64 = 5) -> u64:
    return a + b


@native
def has_no_type(a: u64, b) -> u64:  # type: ignore[no-untyped-def]
    return a + b  # type: ignore[no-any-return]


@export
def calls_default(a: u64) -> u64:
    return has_default(a, a)


@export
def calls_untyped(a: u64) -> u64:
    return has_no_type(a, a)


@inline
def endless(a: u64) -> u64:
    return endless(a) + 1


@export
def calls_endless(a: u64) -> u64:
    return endless(a)


@export
def folded_nonsense(a: u64) -> u64:
    return a + 1 // (FIVE - 5)


@pytest.mark.parametrize(
    ("function", "line", "said"),
    [
        (mixed, 2, "expected u64, got u32"),
        (wrong_comparison, 3, "expected i64, got u64"),
        (wrong_assignment, 3, "expected u32, got u64"),
        (too_large, 3, "0x100 does not fit u8"),
        (wrong_result, 2, "expected u64, got u32"),
        (no_result, 1, "no_result may end without a result"),
        (unexpected_result, 2, "return does not fit"),
        (unknown, 2, "unknown name nothing_of_this_name"),
        (unknown_field, 2, "Outer has no field fifth"),
        (too_few_arguments, 2, "clamp takes 3 arguments, got 2"),
        (chained, 2, "Compare is not in the language"),
        (power, 2, "operator Pow is not in the language"),
        (membership, 2, "operator In is not in the language"),
        (two_targets, 2, "cannot assign to Tuple"),
        (float_literal, 2, "expected u64, got 1.5"),
        (stepping, 3, "range takes one or two arguments"),
        (to_boolean, 2, "compare with 0"),
        (python_function, 2, "cannot call"),
        (traps, 2, "raise of ValueError is not in the language"),
        (hooked, 2, "somewhere has no meaning here"),
        (listing, 2, "List is not in the language"),
        (trying, 2, "Try is not in the language"),
        (with_else, 2, "else of a loop is not in the language"),
        (while_with_else, 2, "else of a loop is not in the language"),
        (by_keyword, 2, "arguments by keyword are not in the language"),
        (converted_by_keyword, 2, "arguments by keyword are not in the language"),
        (two_converted, 2, "u64 takes 1 argument, got 2"),
        (intrinsic_with_more, 2, "clz takes 1 arguments, got 2"),
        (signed_floor, 2, "Python's rounds down; use quotient or remainder"),
        (signed_modulo, 2, "Python's rounds down; use quotient or remainder"),
        (true_division, 2, "operator Div is not in the language"),
        (divided_by_nothing, 2, "// by 0"),
        (divided_too_wide, 2, "// of u128: the host has none"),
        (below_nothing, 2, "-0x1 does not fit u64"),
        (negative_variable, 2, "-0x1 does not fit u64"),
        (above_signed, 2, "0xc8 does not fit i8"),
        (shifted_out, 2, "<< by 64 of u64"),
        (sum_of_truths, 2, "+ of boolean"),
        (inverse_truth, 2, "~ of boolean"),
        (which_of_two, 2, "of boolean operands only, got u64"),
        (maybe_without, 4, "b may have no value here"),
        (without_in_a_loop, 5, "b may have no value here"),
        (after_its_loop, 4, "i may have no value here"),
        (before_it_is, 2, "MASK may have no value here"),
        (from_the_end, 2, "Python counts from the end"),
        (whole_array, 2, "items is an array"),
        (with_a_cause, 2, "Raise is not in the language"),
        (folded_nonsense, 2, "ZeroDivisionError"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_refusals_name_file_and_line(function: Any, line: int, said: str) -> None:
    refused(function, line, said)


@pytest.mark.parametrize(
    ("function", "called", "line", "said"),
    [
        (calls_default, has_default, 0, "other parameters than positional ones without a default"),
        (calls_untyped, has_no_type, 0, "parameter b has no type"),
        (calls_endless, endless, 2, "endless is compiled into itself"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_refusal_names_the_function_that_is_called(function: Any, called: Any, line: int, said: str) -> None:
    module = Module()
    module.function(function)
    with pytest.raises(NativeError, match=said) as caught:
        module.text()
    first = inspect.getsourcelines(called.python)[1]
    assert str(caught.value).startswith(f"{__file__}:{first + line}: ")


def test_a_refusal_in_an_inlined_function_names_that_function() -> None:
    module = Module()
    module.function(calls_what_is_refused)
    with pytest.raises(NativeError) as caught:
        module.text()
    first = inspect.getsourcelines(refused_inside.python)[1]  # type: ignore[attr-defined]
    assert str(caught.value).startswith(f"{__file__}:{first + 2}: ")


def test_native_functions_do_not_run_in_python() -> None:
    functions: list[Callable[..., object]] = [doubled, clamp, call_fibonacci, peek, somewhere, CASES]
    for function in functions:
        with pytest.raises(NativeOnly):
            function(1)
    with pytest.raises(NativeOnly):
        Outer(0)


def test_ir_that_llvm_refuses_is_a_build_error() -> None:
    with pytest.raises(BuildError, match="function result type 'i64'"):
        build("define i64 @f() { ret i32 0 }")
    with pytest.raises(BuildError, match="no external symbol, got outside"):
        build("declare i64 @outside()\ndefine i64 @f() { %a = call i64 @outside() ret i64 %a }")
    with pytest.raises(BuildError, match="writable section"):
        build("@g = global i64 5\ndefine ptr @f() { ret ptr @g }")
