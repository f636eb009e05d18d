"""`python -P -m vmesh_services.memory.cache`: the command line of the cache."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vmesh import service
from vmesh.privileges import REACH
from vmesh_services.memory.cache.service import Cache


def main(argv: Sequence[str]) -> int:
    """Run the cache; gives the exit status."""
    parser = service.parser("cache", "Has the pages of RAM that a cpu on another host uses.")
    return service.run(parser.parse_args(argv), Cache, capabilities=REACH)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
