"""Open files: what a process of the machine needs, and what is left for those who connect to it.

The soft limit (`ulimit -n`, 1,024 as a rule) is for programs that use select(2), which ours do for low numbers only: it
is raised to the hard one. Strangers can use up what is left, so each listener takes only as many connections as leave
the machine its own.
"""

from __future__ import annotations

import resource

LEAST = 256  # files are put aside above number 200: vmesh/spawn.py
_MOST = 1 << 16
_OWN = 64  # of the monitor, the cpu: itself
_SERVICE = 8  # of the monitor: for a service
_LINK = 3  # of the cpu: for a hart and a device
_TO_COME = 8  # devices that may be added
_LISTENERS = 6  # of the monitor, that may be full at once


def raise_limit() -> int:
    """Raise the limit of this process and those it starts; gives it. Raises HostLimit if no machine can do with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    _check(soft, LEAST)
    return soft


def check(services: int, harts: int) -> None:
    """Raises HostLimit if a machine of so many services and harts could not do with the limit."""
    _check(resource.getrlimit(resource.RLIMIT_NOFILE)[0], LEAST, _monitor(services), _cpu(services, harts))


def for_clients(services: int, most: int) -> int:
    """How many connections each listener of the monitor of so many services may have: at most `most`."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return most
    return max(1, min(most, (limit - _monitor(services)) // _LISTENERS))


def _monitor(services: int) -> int:
    return _OWN + _SERVICE * (services + _TO_COME)


def _cpu(services: int, harts: int) -> int:
    return _OWN + harts * (1 + _LINK * (services + _TO_COME))


def _check(limit: int, *needed: int) -> None:
    if resource.RLIM_INFINITY != limit < max(needed):
        from vmesh.errors import HostLimit  # here: this is called before `vmesh run` may take time to import

        raise HostLimit("open files (ulimit -n)", expected=f"a limit of at least {max(needed)}", got=str(limit))
