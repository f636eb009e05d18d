"""The translator: a process of its own that compiles hot code, since LLVM would hold up the harts.

    python -P -m services.cpu.translator FD [--keep]

It answers the requests on a socket (see ``translator_process``), and ends when the other side is gone.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time

from vmesh import scheduling

from .isa.riscv.region import ALL, RegionModule, emit, form
from .native.build import BuildError, build_region
from .region_store import RegionWriter, store_path
from .regions import DIGEST, PAGE, Translation
from .translator_process import KEY, Request, pack_answer, receive

#: Requests that wait; of more, the oldest are forgotten: what is hot now matters.
MOST_WAITING = 256
#: Niceness of the process: harts go first.
NICENESS = 10
#: `addi a0, a0, 1` all over: compiling it loads what LLVM needs.
_WARMING = (0x00150513).to_bytes(4, "little") * (PAGE // 4)


def translate(request: Request) -> Translation | None:
    """Compiles a region; None if there would be next to nothing in it."""
    region = form(request.page, request.offset, request.features, request.executed)
    if region is None:
        return None
    module = RegionModule()
    emit(module, "region", region)
    code = build_region(module.text())
    steps = b"".join(offset.to_bytes(2, "little") for offset in sorted(region.steps))
    entries = b"".join(offset.to_bytes(2, "little") for offset in region.entries)
    return Translation(steps, entries, code.image)


def serve(connection: socket.socket, writer: RegionWriter | None) -> None:
    """Answers requests until the other side is gone; ``writer`` keeps the translations."""
    # by digest and entry, the newest last: asked again, a request is newer
    waiting: dict[bytes, bytes] = {}
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    done: set[bytes] = set()
    while True:
        while not waiting or poller.poll(0):
            message = receive(connection)
            if not message:
                return
            key = message[:KEY]
            if key not in done:
                waiting.pop(key, None)
                waiting[key] = message
        while len(waiting) > MOST_WAITING:
            del waiting[next(iter(waiting))]
        # the newest first: what is hot just now
        key, message = waiting.popitem()
        done.add(key)
        request = Request.parse(message)
        began = time.monotonic_ns()
        try:
            translation = translate(request)
        except Exception as problem:  # the boundary: this region stays interpreted
            why = problem if isinstance(problem, BuildError) else f"{type(problem).__name__}: {problem}"
            print(f"vmesh: a region cannot be compiled: {why}", file=sys.stderr)
            continue
        if translation is None:
            continue
        connection.send(pack_answer(request.digest, translation, (time.monotonic_ns() - began) // 1000))
        if writer is not None:
            writer.append(request.digest, translation)


def main(argv: list[str]) -> int:
    """The process: ``python -P -m services.cpu.translator FD [--keep]``."""
    os.nice(NICENESS)
    scheduling.usual_slices()
    writer = RegionWriter(store_path()) if "--keep" in argv else None
    translate(Request(bytes(DIGEST), 0, frozenset("i"), ALL, _WARMING))
    with socket.socket(fileno=int(argv[0])) as connection, contextlib.suppress(OSError):
        serve(connection, writer)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
