"""The host's processor and kernel, as native code needs to know them: all that is otherwise on another host.

x86-64 is the one that is here. Another is one more value in `HOSTS`, and vmesh/cli/main.py then has to let it in. What
native code itself relies on is said in terms of LLVM's memory model: where order matters between threads it has atomic
accesses, which are sequentially consistent, or `fence`. What a *guest's* accesses need is what RVWMO asks for, `order`.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass

from .lang import fence, inline, u64


@dataclass(frozen=True, slots=True)
class Host:
    """``futex`` and ``sched_yield`` are numbers of system calls (Linux, <asm/unistd.h>), ``relax`` the instruction of
    spin loops; ``relocations`` are those relative to their own place, by type, with the format of what they fill."""

    futex: int
    sched_yield: int
    relax: str
    relocations: Mapping[int, str]
    #: plain accesses keep their order but for a store before a load (x86-TSO); else none is kept that nothing asks for
    total_store_order: bool


#: R_X86_64_PC32, R_X86_64_PLT32 and R_X86_64_PC64 (System V ABI, AMD64 supplement, 4.4.1).
_X86_64 = Host(202, 24, "pause", {2: "<i", 4: "<i", 24: "<q"}, total_store_order=True)
HOSTS = {"x86_64": _X86_64}

if platform.machine() not in HOSTS:
    raise ImportError(f"the cpu's native code: expected a host with {' or '.join(HOSTS)}, got {platform.machine()}")
HOST = HOSTS[platform.machine()]

#: The same on all of them.
CLOCK_MONOTONIC, FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE = 1, 128, 129
FUTEX, SCHED_YIELD = HOST.futex, HOST.sched_yield
#: Kinds of accesses to memory, as the fields of a RISC-V FENCE have them.
WRITES, READS = 1, 2
TOTAL_STORE_ORDER = HOST.total_store_order


@inline
def order(before: u64, after: u64) -> None:
    """This hart's accesses to memory of the kinds ``before`` come before its later ones of the kinds ``after`` in the
    global memory order (RISC-V Unprivileged, RVWMO: FENCE). Other bits than those of kinds say nothing."""
    if TOTAL_STORE_ORDER:
        if before & WRITES != 0 and after & READS != 0:
            fence()
    elif before & (READS | WRITES) != 0 and after & (READS | WRITES) != 0:
        fence()
