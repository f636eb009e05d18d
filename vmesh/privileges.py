"""What a service gives up before it does anything: privileges that it does not need, for good.

That is no jail: a service still is a process of its user, and can do what that user can (docs/security.md).
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Set
from enum import IntEnum
from pathlib import Path

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
_VERSION_3 = 0x20080522  # capget(2)
_libc = ctypes.CDLL(None, use_errno=True)


class Capability(IntEnum):
    """capabilities(7), as far as a service needs any when root starts it."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    FOWNER = 3
    FSETID = 4
    NET_BIND_SERVICE = 10
    NET_ADMIN = 12


#: To reach the machine directory, and the log, wherever root has put them.
REACH = frozenset({Capability.DAC_OVERRIDE})
#: To use the files of any user, as root is used to.
FILES = frozenset({Capability.CHOWN, Capability.DAC_OVERRIDE, Capability.DAC_READ_SEARCH, Capability.FOWNER})


def drop(keep: Set[Capability] = frozenset()) -> None:
    """Give up all capabilities but these, in what this process starts, too, which can gain none by set-user-ID or file
    capabilities; and write no core dumps: guest memory is in them. For a process with one thread.
    """
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for number in range(last + 1):
        if number not in keep:
            _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # EPERM without privileges, and then there are none
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = struct.pack("<Ii", _VERSION_3, 0)
    now = ctypes.create_string_buffer(24)
    if _libc.capget(header, now) == 0:
        wanted = sum(1 << number for number in keep)
        low, high = wanted & 0xFFFF_FFFF, wanted >> 32
        effective0, permitted0, _, effective1, permitted1, _ = struct.unpack("<6I", now.raw)
        kept = (effective0 & low, permitted0 & low, 0, effective1 & high, permitted1 & high, 0)
        if _libc.capset(header, struct.pack("<6I", *kept)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "capset")
