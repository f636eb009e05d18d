"""`vmesh swap [MACHINE] DEVICE -- COMMAND...`: another program in the place of a device, while the guest runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from vmesh.client import GatewayError, MachineClient
from vmesh.machine import MachineError, find


def swap(names: Sequence[str], command: Sequence[str]) -> int:
    """`names` are those of the machine, which may be left out if only one runs, and of the device."""
    try:
        machine = find(names[0] if len(names) > 1 else "")
        with MachineClient(machine) as client:
            reply = client.swap(names[-1], command, os.getcwd())
    except (MachineError, GatewayError) as error:
        print(f"vmesh swap: {error}", file=sys.stderr)
        return 1
    taken = f"{reply.state_type} version {reply.former_version}"
    if reply.version != reply.former_version:
        taken += f", now version {reply.version}"
    print(f"{names[-1]} ({reply.kind}) goes on in its life {reply.epoch}, with {taken}")
    print(f"the guest stood still for {reply.pause_seconds * 1e3:.0f} ms")
    return 0
