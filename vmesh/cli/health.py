"""`vmesh health`: a container's health check, which costs an engine's host little.

An engine begins a check anew some time after the last one has ended: for a quick start that time is short. A process
every second for each container would be a good part of a core, so a check stays once the service was well.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from vmesh.client import GatewayError, connect
from vmesh.machine import MachineError

_ANSWER_SECONDS = 10.0  # an engine asks again


def health(name: str, service: str, hold: float) -> int:
    """0 if the service (empty: the monitor) is well, and stays so for `hold` seconds if it was at a check before."""
    was_well = Path(tempfile.gettempdir()) / f"vmesh-health-{service or 'monitor'}"
    try:
        with connect(name, _ANSWER_SECONDS) as client:
            for well in client.health(service, hold if was_well.exists() else 0.0):
                if not well:
                    print(f"vmesh health: '{service or 'monitor'}' is not well", file=sys.stderr)
                    return 1
    except (MachineError, GatewayError) as error:
        print(f"vmesh health: {error}", file=sys.stderr)
        return 1
    if hold:
        was_well.touch()
    return 0
