"""`python -P -m tests.models.hostile_device`: a device that says anything to everybody, for `-device vmesh-external`.

In each life it is well-behaved at first, and until the machine runs, which ends if a device is none by then. SEED and
the number of its life choose what it says.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import zmq

from tests.models.hostile_bus import Device
from vmesh.machine import MachineDirectory

_POLITE_SECONDS = 1.0


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="hostile_device", description=__doc__)
    parser.add_argument("--machine", type=Path, required=True)
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--lifeline", type=int, required=True)
    options, _ = parser.parse_known_args(argv)

    def end_with_the_machine() -> None:
        select.select([options.lifeline], [], [])
        os._exit(0)

    threading.Thread(target=end_with_the_machine, daemon=True).start()
    os.umask(0o077)
    seed = int(os.environ["SEED"]) + options.epoch
    device = Device(zmq.Context(), options.machine, seed, options.epoch)
    machine = MachineDirectory(options.machine)
    while machine.read_record().state != "running":
        device.step(polite=True)
    polite_until = time.monotonic() + _POLITE_SECONDS
    while True:
        device.step(polite=time.monotonic() < polite_until)


if __name__ == "__main__":
    main(sys.argv[1:])
