"""Files that several processes have mapped, and what becomes of a process when one of them is cut short.

To touch a page of a mapped file that is behind its end, or for which its file system has no room, is a SIGBUS. Where
that is a mapping of `share`, it is caught:

* The process ends at once, as if it had been killed, but with one line that names the file and the cause: what it would
  have made of that page gets nowhere. A device's next life goes on from its slot.
* A process that is to `outlive` it, since there is no machine without it, gets memory of its own, all zero, from that
  page to the end of the mapping, and is told. It has to see that nothing comes of what it reads and writes there.

A SIGBUS of any other origin ends the process by that signal, as ever.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import weakref
from collections.abc import Callable
from pathlib import Path

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_SA_SIGINFO, _SA_NODEFER = 4, 0x4000_0000
_CODE, _ADDRESS = 8, 16  # where siginfo_t has si_code and si_addr
_BUS_ADRERR = 2
_MAP_FIXED = 0x10
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mmap.restype = ctypes.c_void_p


class _Action(ctypes.Structure):
    """`struct sigaction` of the C library."""

    _fields_ = (
        ("handler", _HANDLER),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class _Buffer(ctypes.Structure):
    """`Py_buffer`, of which only the first field is looked at."""

    _fields_ = (("start", ctypes.c_void_p), ("others", ctypes.c_ubyte * 72))


class _Shared:
    """A mapping that lives."""

    def __init__(self, mapped: mmap.mmap, path: Path) -> None:
        self.start, self.size, self.path = _start(mapped), len(mapped), path
        self._mapped = weakref.ref(mapped, self._forget)

    def has(self, address: int) -> bool:
        mapped = self._mapped()
        return self.start <= address < self.start + self.size and mapped is not None and not mapped.closed

    def cause(self, address: int) -> str:
        """Why the page at `address` is not there: one line."""
        mapped = self._mapped()
        left = self.size if mapped is None else mapped.size()
        if self.start + left <= address:
            return f"{self.path} was cut short: {left} of {self.size} bytes are left"
        return f"{self.path}: its file system has no room for it"

    def replace(self, address: int) -> None:
        """Zeros of this process's own from the page at `address` on. However often, that is one area of memory more."""
        page = address & -mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
        wanted = self.start + self.size - page
        found = _libc.mmap(page, wanted, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if found == _FAILED:
            raise OSError(ctypes.get_errno(), "no memory in the place of a lost page")

    def _forget(self, _: weakref.ref[mmap.mmap]) -> None:
        if _shared.get(self.start) is self:
            del _shared[self.start]


_shared: dict[int, _Shared] = {}  # by their start
_outlives: Callable[[str], None] | None = None
_before: _Action | None = None  # what a SIGBUS did before it was caught


def share(fd: int, size: int, path: Path, *, writable: bool) -> mmap.mmap:
    """Map the first `size` bytes of the open file, all of it for 0, shared; `path` is what it is called when it is cut
    short. Raises OSError, ValueError."""
    mapped = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
    shared = _Shared(mapped, path)
    _shared[shared.start] = shared
    _catch()
    return mapped


def outlive(lost: Callable[[str], None]) -> None:
    """This process goes on when a page is lost: `lost` is called with the cause, once for each page that is touched, in
    the thread that did so, wherever that was. It may take note, and no more."""
    global _outlives
    _outlives = lost


def _catch() -> None:
    global _before
    if _before is None:
        before = _Action()
        _act(_Action(handler=_handler, flags=_SA_SIGINFO | _SA_NODEFER), before)
        _before = before


def _act(action: _Action, before: _Action | None = None) -> None:
    if _libc.sigaction(signal.SIGBUS, ctypes.byref(action), before and ctypes.byref(before)) != 0:
        raise OSError(ctypes.get_errno(), "sigaction")


def _faulted(number: int, info: int, _context: int) -> None:
    """The signal's handler, in Python. Why that may be:

    The signal is synchronous: it comes from the one instruction that touched the page, in this thread, and never from
    within the interpreter's or the allocator's own work, which have no data in these mappings. That instruction is in
    a function that Python has called: with the interpreter's lock, as if that function called back, which ctypes does
    for any thread; or without it (a hart in native code, a checksum), and then the lock is waited for here. Who has it
    waits for no such thread without letting go of it: native code, and its locks that a hart may hold here, is always
    entered without it, and Python's own waits release it. Nothing that the interrupted function has is touched here.
    """
    try:
        code = ctypes.c_int.from_address(info + _CODE).value
        address = ctypes.c_uint64.from_address(info + _ADDRESS).value
        for shared in list(_shared.values()) if code == _BUS_ADRERR else ():
            if shared.has(address):
                cause = shared.cause(address)
                if _outlives is None:
                    os.write(2, f"{cause}\n".encode(errors="backslashreplace"))
                    os._exit(1)
                shared.replace(address)
                _outlives(cause)
                return
    except BaseException as error:  # nobody above could take it
        os.write(2, f"SIGBUS, and {error!r} in its handler\n".encode(errors="backslashreplace"))
    assert _before is not None
    _act(_before)
    signal.raise_signal(number)


_handler = _HANDLER(_faulted)


def _start(mapped: mmap.mmap) -> int:
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(mapped), ctypes.byref(buffer), 0)
    start = int(buffer.start or 0)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return start
