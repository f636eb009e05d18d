"""`vmesh status|pause|resume|reset|registers|stop|quit NAME`: one call to the machine's gateway each."""

from __future__ import annotations

import sys

from vmesh.cli import show
from vmesh.client import GatewayError, MachineClient
from vmesh.machine import MachineError, find


def control(verb: str, name: str, hart: int) -> int:
    """Carry out one verb. Returns the exit status; errors are one line on stderr."""
    try:
        with MachineClient(find(name)) as client:
            match verb:
                case "status":
                    print(show.machine(client.status()))
                case "registers":
                    print(show.registers(client.registers(hart)))
                case "pause":
                    client.pause()
                case "resume":
                    client.resume()
                case "reset":
                    client.reset()
                case "stop" | "quit":
                    client.quit()
    except (MachineError, GatewayError, ValueError) as error:
        print(f"vmesh {verb}: {error}", file=sys.stderr)
        return 1
    return 0
