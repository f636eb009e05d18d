"""How soon the host lets a thread run that has been woken.

A hart computes all the time, and what it has posted goes through four threads that sleep until then, to the device and
back as an interrupt. Where one of them is woken on a core that a hart has, Linux lets the hart go on to the end of its
slice, some milliseconds; unless who was woken has asked for shorter slices (EEVDF, Linux 6.12). That takes no
privilege and gives no more of the processor, which is why it is asked for without asking the user.
"""

from __future__ import annotations

import ctypes
import os
import struct

_SCHED_SETATTR = 314  # on x86-64
_ATTRIBUTES = struct.Struct("<IIQiIQQQ")  # sched_setattr(2): the first version
_SHORT_NS = 100_000  # the shortest that there is
_libc = ctypes.CDLL(None, use_errno=True)


def short_slices() -> None:
    """For this thread, and those that it starts, which mostly wait. A kernel that does not know of it ignores it."""
    _slices(_SHORT_NS)


def usual_slices() -> None:
    """For this thread, which computes."""
    _slices(0)


def _slices(length_ns: int) -> None:
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, length_ns, 0, 0)
        _libc.syscall(_SCHED_SETATTR, 0, attributes, 0)
