"""`python -P -m vmesh_services.migration`: the command line of the migration service."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vmesh import service
from vmesh.privileges import FILES, Capability


def main(argv: Sequence[str]) -> int:
    """Run the migration service; gives the exit status."""
    from vmesh_services.migration.service import Migration  # here: numpy, which only a machine that migrates needs

    parser = service.parser("migration", "Carries the machine to another process or into a file.")
    return service.run(parser.parse_args(argv), Migration, capabilities=FILES | {Capability.NET_BIND_SERVICE})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
