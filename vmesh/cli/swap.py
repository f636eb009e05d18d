"""`vmesh swap [NAME] DEVICE -- COMMAND ...`: another program in the place of a device, while the guest runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from vmesh.client import GatewayError, connect
from vmesh.machine import MachineError


def swap(name: str, device: str, command: Sequence[str]) -> int:
    """Returns the exit status; errors are one line on stderr."""
    try:
        with connect(name) as client:
            reply = client.swap(device, command, os.getcwd())
    except (MachineError, GatewayError) as error:
        print(f"vmesh swap: {error}", file=sys.stderr)
        return 1
    taken = f"{reply.state_type} version {reply.former_version}"
    if reply.version != reply.former_version:
        taken += f", now version {reply.version}"
    print(f"{device} ({reply.kind}) goes on in its life {reply.epoch}, with {taken}")
    print(f"the guest stood still for {reply.pause_seconds * 1e3:.0f} ms")
    return 0
