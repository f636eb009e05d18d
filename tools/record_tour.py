"""docs/pictures/tour.svg: a terminal session, recorded from commands that really ran.

    python -P tools/record_tour.py > docs/pictures/tour.svg

It needs the Debian guest (`make guest`), and starts and ends a machine of the name demo.
"""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

_COLUMNS, _ROWS = 112, 60
_VMESH = Path(sys.executable).with_name("vmesh")
#: What is typed, and for how many seconds it is left to run; in words of a shell.
_TYPED = (
    ("echo 'uname -rm; nproc; cat /proc/interrupts | head -3' | vmesh run -quiet -smp 2", 0.0),
    ("vmesh run -name demo -smp 2 -serial null -device virtio-rng-device &", 4.0),
    ("vmesh ps", 0.0),
    ("vmesh swap demo rtc -- $PYTHON -P -m vmesh_services.devices.goldfish_rtc", 0.0),
    ("vmesh snapshot save demo before", 0.0),
    ("vmesh status demo | tail -7", 0.0),
    ("vmesh stop demo", 1.0),
)
_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # it would be fetched from somewhere


def _run(typed: str, pause: float, environment: dict[str, str]) -> str:
    """What a shell on a terminal shows of a command."""
    master, slave = pty.openpty()
    background = typed.endswith("&")
    there = subprocess.DEVNULL if background else slave
    command = ["bash", "-c", typed.removesuffix("&")]
    process = subprocess.Popen(command, stdin=there, stdout=there, stderr=there, env=environment)
    os.close(slave)
    shown = b""
    while not background:
        try:
            shown += os.read(master, 4096)
        except OSError:  # all who had the terminal have ended
            break
    if not background:
        process.wait()
    os.close(master)
    time.sleep(pause)
    return shown.decode()


def main() -> None:
    """Write the picture to the standard output."""
    paths = f"{_VMESH.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": paths, "COLUMNS": str(_COLUMNS), "LINES": str(_ROWS), "TERM": "xterm-256color"}
    environment["PYTHON"] = sys.executable
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True)
    for typed, pause in _TYPED:
        console.print(Text.assemble(("$ ", "bold green"), (typed.replace("$PYTHON", "python"), "bold")))
        shown = _run(typed, pause, environment).replace("\r\n", "\n").replace(str(Path.home()), "~")
        console.print(Text.from_ansi(shown.rstrip("\n"), no_wrap=True, overflow="ignore"), soft_wrap=True)
    picture = console.export_svg(title="vmesh", unique_id="tour").replace("<svg ", '<svg xml:space="preserve" ', 1)
    print(_FONT.sub("", picture), end="")


if __name__ == "__main__":
    main()
