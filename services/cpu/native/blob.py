"""Loads compiled code into executable memory and makes its exports callable."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

PROT_READ, PROT_EXEC = 1, 4
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
_libc.mremap.restype = ctypes.c_void_p
_MREMAP_MAYMOVE = 1


def map_executable(memory: mmap.mmap) -> int:
    """Maps shared memory a second time, for running what is written to it; gives the address. Never unmapped.

    An old size of 0 makes a second mapping of the same pages (mremap(2)); `perf` takes names for anonymous memory only.
    """
    size = len(memory)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    address = _libc.mremap(base, 0, size, _MREMAP_MAYMOVE)
    failed = address is None or address == ctypes.c_void_p(-1).value
    if failed or _libc.mprotect(address, size, PROT_READ | PROT_EXEC):
        raise OSError(ctypes.get_errno(), "the host refuses executable memory")
    return int(address)


class Blob:
    """Executable memory that holds an image; never writable and executable at once."""

    def __init__(self, image: bytes, symbols: dict[str, int]) -> None:
        size = -(-len(image) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, size)
        self._memory[: len(image)] = image
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.symbols = symbols
        if _libc.mprotect(self.base, size, PROT_READ | PROT_EXEC):
            raise OSError(ctypes.get_errno(), "the host refuses executable memory")

    def address(self, symbol: str) -> int:
        """The host address of a symbol."""
        return self.base + self.symbols[symbol]

    def function(self, symbol: str, arguments: int, result: bool = True) -> Callable[..., Any]:
        """An export as a callable of 64-bit arguments; the GIL is released while it runs."""
        prototype = ctypes.CFUNCTYPE(ctypes.c_uint64 if result else None, *[ctypes.c_uint64] * arguments)
        return prototype(self.address(symbol))
