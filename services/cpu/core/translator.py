"""The translator: a process of its own that compiles hot code, since LLVM would hold up the harts.

    python -P -m vmesh_services.cpu.core.translator ISA FD [--keep]

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

from ..isa.interface import Isa, load
from ..native.build import BuildError, build_region
from .region import ALL, RegionModule, emit, form
from .region_store import RegionWriter, store_path
from .regions import DIGEST, Translation
from .tlb import PAGE
from .translator_process import CONTENT, PLACE, Request, pack_answer, receive

#: Requests that wait; of more, the oldest are forgotten: what is hot now matters.
MOST_WAITING = 256
#: Niceness of the process: harts go first.
NICENESS = 10


def translate(isa: Isa, request: Request) -> Translation | None:
    """Compiles a region; None if there would be next to nothing in it."""
    region = form(isa, request.page, request.offset, request.features, request.executed)
    if region is None:
        return None
    module = RegionModule(isa)
    emit(module, "region", region)
    code = build_region(module.text())
    steps = b"".join(offset.to_bytes(2, "little") for offset in sorted(region.steps))
    entries = b"".join(offset.to_bytes(2, "little") for offset in region.entries)
    return Translation(steps, entries, code.image)


def serve(isa: Isa, connection: socket.socket, writer: RegionWriter | None) -> None:
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
            translation = translate(isa, request)
        except Exception as problem:  # the boundary: this region stays interpreted
            why = problem if isinstance(problem, BuildError) else f"{type(problem).__name__}: {problem}"
            print(f"vmesh: a region cannot be compiled: {why}", file=sys.stderr)
            continue
        answer = translation or Translation.nothing(request.offset)
        connection.send(pack_answer(request.digest, answer, (time.monotonic_ns() - began) // 1000))
        if translation is not None and writer is not None:
            writer.append(request.digest, translation)


def main(argv: list[str]) -> int:
    """The process: ``python -P -m vmesh_services.cpu.core.translator ISA FD [--keep]``."""
    os.nice(NICENESS)
    scheduling.usual_slices()
    isa = load(argv[0])
    writer = RegionWriter(store_path(isa.name)) if "--keep" in argv else None
    translate(
        isa,
        Request(bytes(DIGEST), 0, 0, frozenset(isa.features), ALL, isa.code.warming * (PAGE // len(isa.code.warming))),
    )
    with socket.socket(fileno=int(argv[1])) as connection, contextlib.suppress(OSError):
        serve(isa, connection, writer)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
