"""Boot Debian's kernel with each part of the board elsewhere, one by one and all: ``python -P -m bench.moved_board``.

Exit status 1: one did not boot, find its disk and power off.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from collections.abc import Collection
from pathlib import Path

from tests.models import moved_board
from vmesh.spawn import python

_LIMIT = 120.0  # seconds
_ITEM = "/sys/firmware/qemu_fw_cfg/by_name/opt/x/raw"
_STATUS = 3  # which the guest ends with, by the test device


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -P -m bench.moved_board", description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="*", choices=[[], *moved_board.MOVES], help="only these, one by one")
    names = parser.parse_args(argv).part or [*moved_board.MOVES]
    failed = 0
    for moved in [*([name] for name in names), *[names] * (len(names) > 1)]:
        said = _boot(moved)
        failed += bool(said)
        print(f"{', '.join(moved)}: {said or 'boots'}", flush=True)
    return 1 if failed else 0


def _boot(moved: Collection[str]) -> str:
    """What went wrong, if anything did."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "disk").write_bytes(b"here\n".ljust(1 << 20, b"\0"))
        found_first = moved_board.make(folder / "tree", moved)
        flags = ["-quiet", "-drive", f"file={folder}/disk,format=raw", "-fw_cfg", "opt/x,string=item"]
        command = python("vmesh.cli", "run", *flags)
        try:
            done = subprocess.run(
                command, input=f"cat /sys/class/rtc/rtc0/name {_ITEM}; head -n 1 /dev/vda; exit {_STATUS}\n",
                env={**os.environ, **found_first}, capture_output=True, text=True, timeout=_LIMIT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"nothing after {_LIMIT:g} s"
    right = done.returncode == _STATUS and all(text in done.stdout for text in ("goldfish_rtc", "item", "here\n"))
    return "" if right else f"status {done.returncode}: {done.stdout}{done.stderr}"


if __name__ == "__main__":
    raise SystemExit(main())
