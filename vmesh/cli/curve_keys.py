"""`vmesh keys`: the keys of a machine whose services are on several hosts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vmesh import curve, errors
from vmesh.board import virt

#: What every machine has.
SERVICES = ("monitor", "memory", "cache", "cpu", "migration", *virt.DEVICES)


def keys(folder: Path, devices: Sequence[str]) -> int:
    """Make what is missing of the machine's keys, and say what goes where; gives the exit status."""
    names = [*SERVICES, *(name for name in devices if name not in SERVICES)]
    try:
        made = curve.make(folder, names)
    except errors.ConfigError as error:
        print(f"vmesh: {error}", file=sys.stderr)
        return 1
    kept = [name for name in names if name not in made]
    print(f"{folder}: {'made keys of ' + ', '.join(made) if made else 'nothing made'}")
    if kept:
        print(f"kept those of {', '.join(kept)}")
    print(f"To each host of the machine, copy every {folder}/*{curve.PUBLIC};")
    print(f"of {folder}/*{curve.SECRET} those of the services that run there, and no others:")
    print("whoever has a secret key is that service. Start the services with --keys FOLDER.")
    return 0
