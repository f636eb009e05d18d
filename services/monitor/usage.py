"""What the machine's processes use of their host: proc_pid_stat(5), proc_pid_status(5), proc_pid_smaps_rollup(5)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vmesh.v1 import gateway_pb2

_TICKS = os.sysconf("SC_CLK_TCK")
_UTIME = 11  # in stat, counted behind the name
_NUMBERS = re.compile(r"^(VmRSS|Threads|Pss):\s+(\d+)", re.MULTILINE)


def add_usage(status: gateway_pb2.MachineStatus, others: Mapping[str, int]) -> None:
    """Fill in what each service uses, and each of `others`, pids by name; the children of all of them too."""
    for service in status.services:
        if found := usage(service.pid):
            service.usage.CopyFrom(found)
            others = {**others, **{f"{service.name} helper": child for child in _children(service.pid)}}
    for name, pid in others.items():
        if found := usage(pid):
            status.others.add(name=name, pid=pid, usage=found)


def usage(pid: int) -> gateway_pb2.Usage | None:
    """None of a process that is not there."""
    place = Path("/proc") / str(pid)
    try:
        numbers = dict(_NUMBERS.findall((place / "status").read_text()))
        fields = (place / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    with suppress(OSError):  # where the host does not let us
        numbers |= dict(_NUMBERS.findall((place / "smaps_rollup").read_text()))
    return gateway_pb2.Usage(
        cpu_seconds=(int(fields[_UTIME]) + int(fields[_UTIME + 1])) / _TICKS,
        rss_bytes=int(numbers.get("VmRSS", 0)) << 10,
        pss_bytes=int(numbers.get("Pss", 0)) << 10,
        threads=int(numbers.get("Threads", 0)),
    )


def _children(pid: int) -> list[int]:
    with suppress(OSError, ValueError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
