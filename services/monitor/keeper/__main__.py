"""`python -P -m vmesh_services.monitor.keeper`: the keeper where nobody forks it, beside services that others start."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vmesh.errors import VmeshError
from vmesh.machine import MachineError, meet
from vmesh_services.monitor.keeper import command_argument, console_argument, keep


def main(argv: Sequence[str]) -> int:
    """Keep consoles and networks to the machine's end; gives the exit status."""
    os.umask(0o077)
    parser = argparse.ArgumentParser(prog="vmesh-keeper", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--machine", type=Path, required=True, metavar="DIR", help="the machine directory")
    add("--console", type=console_argument, action="append", default=[], metavar="NAME=CHARDEV", help="of the monitor")
    add("--service", type=command_argument, action="append", default=[], metavar="TEXT", help="as the monitor has it")
    options = parser.parse_args(argv)
    try:
        machine = meet(options.machine.absolute())
        lock = machine.claim("keeper")
        try:
            return keep(machine, dict(options.console), options.service)
        finally:
            os.close(lock)
    except (MachineError, VmeshError) as error:
        print(f"keeper: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
