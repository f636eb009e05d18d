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
from .isa.riscv.tlb import PAGE
from .native.build import BuildError, build_region
from .region_store import RegionWriter, store_path
from .regions import DIGEST, Translation
from .translator_process import CONTENT, PLACE, Request, pack_answer, receive

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
    # by place, the newest last: asked again, a request is newer, and what a page held before is not needed any more
    waiting: dict[bytes, bytes] = {}
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    done: set[bytes] = set()
    while True:
        while not waiting or poller.poll(0):
            message = receive(connection)
            if not message:
                return
            if message[CONTENT] not in done:
                waiting.pop(message[PLACE], None)
                waiting[message[PLACE]] = message
        while len(waiting) > MOST_WAITING:
            del waiting[next(iter(waiting))]
        # the newest first: what is hot just now
        _, message = waiting.popitem()
        if message[CONTENT] in done:  # of another place
            continue
        done.add(message[CONTENT])
        request = Request.parse(message)
        began = time.monotonic_ns()
        try:
            translation = translate(request)
        except Exception as problem:  # the boundary: this region stays interpreted
            why = problem if isinstance(problem, BuildError) else f"{type(problem).__name__}: {problem}"
            print(f"vmesh: a region cannot be compiled: {why}", file=sys.stderr)
            continue
        answer = translation or Translation.nothing(request.offset)
        connection.send(pack_answer(request.digest, answer, (time.monotonic_ns() - began) // 1000))
        if translation is not None and writer is not None:
            writer.append(request.digest, translation)


def main(argv: list[str]) -> int:
    """The process: ``python -P -m services.cpu.translator FD [--keep]``."""
    os.nice(NICENESS)
    scheduling.usual_slices()
    writer = RegionWriter(store_path()) if "--keep" in argv else None
    translate(Request(bytes(DIGEST), 0, 0, frozenset("i"), ALL, _WARMING))
    with socket.socket(fileno=int(argv[0])) as connection, contextlib.suppress(OSError):
        serve(connection, writer)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
