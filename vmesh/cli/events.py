"""`vmesh events NAME`: what happens to a machine, a line each, until it ends or Ctrl-C."""

from __future__ import annotations

import json
import sys
import time

from vmesh.client import GatewayError, connect
from vmesh.machine import MachineError


def events(name: str, *, as_json: bool) -> int:
    """Returns the exit status."""
    try:
        with connect(name) as client:
            for event in client.events():
                data = json.loads(event.data)
                if as_json:
                    stamp = {"seconds": event.time_us // 1_000_000, "microseconds": event.time_us % 1_000_000}
                    line = {"timestamp": stamp, "event": event.name, "data": data, "dropped": event.dropped}
                    print(json.dumps(line), flush=True)
                    continue
                if event.dropped:
                    print(f"({event.dropped} events were not kept)")
                clock = time.strftime("%H:%M:%S", time.localtime(event.time_us // 1_000_000))
                values = " ".join(f"{key}={json.dumps(value)}" for key, value in data.items())
                print(f"{clock}.{event.time_us // 1000 % 1000:03d} {event.name} {values}".rstrip(), flush=True)
    except (MachineError, GatewayError) as error:
        print(f"vmesh events: {error}", file=sys.stderr)
        return 1
    return 0
