"""Commands that are one call to a machine's gateway each: `vmesh status NAME` and the like, device_add, device_del."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

from google.protobuf import json_format

from vmesh import show
from vmesh.client import GatewayError, MachineClient, connect
from vmesh.machine import MachineError
from vmesh.v1 import migration_pb2

_POSTCOPY = (
    migration_pb2.MIGRATION_POSTCOPY_ACTIVE,
    migration_pb2.MIGRATION_POSTCOPY_PAUSED,
    migration_pb2.MIGRATION_POSTCOPY_RECOVER,
)


def control(verb: str, name: str, hart: int = 0, *, as_json: bool = False) -> int:
    """Carry out one verb. Returns the exit status; errors are one line on stderr."""

    def call(client: MachineClient) -> None:
        match verb:
            case "status" if as_json:
                found = json_format.MessageToDict(client.status(), always_print_fields_with_no_presence=True)
                print(json.dumps(found, indent=1))
            case "status":
                print(show.machine(client.status()))
            case "registers":
                print(show.registers(client.registers(hart)))
            case "metrics":
                print(client.metrics(), end="")
            case "pause":
                client.pause()
            case "resume":
                client.resume()
            case "reset":
                client.reset()
            case "stop" | "quit":
                status = client.query_migrate().status
                if status.state in _POSTCOPY and not status.incoming:
                    text = "the guest runs at the destination of its post-copy, which needed what was here: it is lost"
                    print(f"vmesh {verb}: {text}", file=sys.stderr)
                client.quit()

    return _call(verb, name, call)


def device_add(name: str, device: str, drives: Sequence[str], netdevs: Sequence[str], fsdevs: Sequence[str]) -> int:
    """Add a device; says where the guest finds it."""
    from vmesh.qdev import hotplug

    texts = [[hotplug.absolute(text) for text in group] for group in (drives, netdevs, fsdevs)]

    def call(client: MachineClient) -> None:
        reply = client.add_device(device, *texts)
        print(f"{reply.name} is at {reply.base:#x}" + (f", interrupt {reply.irq}" if reply.irq else ""))

    return _call("device_add", name, call)


def device_del(name: str, device: str) -> int:
    return _call("device_del", name, lambda client: client.remove_device(device))


def _call(verb: str, name: str, call: Callable[[MachineClient], None]) -> int:
    try:
        with connect(name) as client:
            call(client)
    except (MachineError, GatewayError, ValueError) as error:
        print(f"vmesh {verb}: {error}", file=sys.stderr)
        return 1
    return 0
