"""`vmesh trace NAME`: the bus's traffic as readable lines, or as a Chrome trace for Perfetto (ui.perfetto.dev)."""

from __future__ import annotations

import bisect
import contextlib
import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from vmesh.client import GatewayError, connect
from vmesh.machine import MachineError
from vmesh.trace import identity
from vmesh.v1 import trace_pb2
from vmesh.v1.trace_pb2 import TraceRecord, TraceRecords

Write = Callable[[TraceRecords], None]

_KINDS = {
    trace_pb2.TRACE_SYNC: "sync",
    trace_pb2.TRACE_POSTED: "posted",
    trace_pb2.TRACE_SHADOW: "shadow",
    trace_pb2.TRACE_DOORBELL: "doorbell",
    trace_pb2.TRACE_UNMAPPED: "unmapped",
    trace_pb2.TRACE_BATCH: "batch",
    trace_pb2.TRACE_UPDATE: "update",
    trace_pb2.TRACE_HANDLED: "handled",
    trace_pb2.TRACE_SENT: "sent",
    trace_pb2.TRACE_DMA_READ: "dma read",
    trace_pb2.TRACE_DMA_WRITE: "dma write",
}
_ORDER_NS = 300_000_000  # how late a service may tell something
_ACCESSES = ("sync", "posted", "shadow", "doorbell", "unmapped")


def trace(name: str, output: Path | None, seconds: float, *, lines: bool) -> int:
    """Record for so many seconds, or until Ctrl-C or the machine's end. Returns the exit status."""
    lines = lines or output is None
    total = dropped = 0
    try:
        with connect(name) as client, _opened(output) as file:
            stream = client.trace()
            timer = threading.Timer(seconds, client.close)
            timer.daemon = True
            if seconds:
                timer.start()
            with _interrupted(client.close), contextlib.ExitStack() as ends:
                write = ends.enter_context(_lines(file) if lines else _chrome(file, client.name))
                for records in stream:
                    total, dropped = total + len(records.records), dropped + records.dropped
                    write(records)
            timer.cancel()
    except (MachineError, GatewayError) as error:
        print(f"vmesh trace: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if output is None:
            raise  # nobody reads on: the command's end
        print(f"vmesh trace: {output}: {error.strerror}", file=sys.stderr)
        return 1
    lost = f", {dropped} more were not kept" if dropped else ""
    print(f"{total} records{lost}" + (f", in {output}" if output else ""), file=sys.stderr)
    return 0


@contextlib.contextmanager
def _interrupted(end: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls `end`, in a thread: raised as KeyboardInterrupt in a callback of gRPC, it would be dropped."""
    former = signal.signal(signal.SIGINT, lambda _number, _frame: threading.Thread(target=end, daemon=True).start())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


@contextlib.contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    with output.open("w") as file:
        yield file


def line(record: TraceRecord, began_ns: int) -> str:
    """A record for people: `  12.345678 ms sync      hart 0 uart0.LSR -> 0x60 (1) 87.2 µs pc 0x80001234 uart0/0/17`."""
    kind = _KINDS.get(record.kind, "?")
    words = [f"{(record.time_ns - began_ns) / 1e6:13.6f} ms", f"{kind:<9}"]
    if kind in _ACCESSES:
        place = f"{record.device}.{record.register}" if record.device else f"{record.value:#x}"
        words += [f"hart {record.hart}", place]
        if record.device:
            words.append(f"{'<-' if record.write else '->'} {record.value:#x}")
        words.append(f"({record.size})")
    elif kind in ("batch", "handled"):
        words += [record.device, f"{record.size} accesses of hart {record.hart}"]
    elif kind.startswith("dma"):
        words += [record.device, f"{record.value:#x}+{record.size}"]
    else:
        words += [record.device, f"update {record.update}"]
    if record.text:
        words.append(record.text)
    if record.duration_ns:
        words.append(f"{record.duration_ns / 1e3:.1f} µs")
    if kind in _ACCESSES:
        words.append(f"pc {record.pc:#x}")
    if record.sequence:
        words.append(identity(record.device, record.hart, record.sequence))
    return " ".join(words)


@contextlib.contextmanager
def _lines(file: TextIO) -> Iterator[Write]:
    """In the order of time: services tell what they have some times a second, so a line waits that long for others."""
    waiting: list[TraceRecord] = []
    began = 0

    def put(until_ns: float) -> None:
        nonlocal began
        waiting.sort(key=lambda record: record.time_ns)
        count = bisect.bisect(waiting, until_ns, key=lambda record: record.time_ns)
        for record in waiting[:count]:
            began = began or record.time_ns
            print(line(record, began), file=file)
        del waiting[:count]
        file.flush()

    def write(records: TraceRecords) -> None:
        waiting.extend(records.records)
        if waiting:
            put(max(record.time_ns for record in waiting) - _ORDER_NS)
        if records.dropped:
            print(f"({records.dropped} records were not kept)", file=file)

    try:
        yield write
    finally:
        put(math.inf)


@contextlib.contextmanager
def _chrome(file: TextIO, machine: str) -> Iterator[Write]:
    """The JSON array of the Trace Event Format (Google, "Trace Event Format"): a track for each hart and device."""
    tracks: dict[tuple[str, str], tuple[int, int]] = {}
    first, last_us = True, 0.0

    def put(event: dict[str, object]) -> None:
        nonlocal first
        file.write(("" if first else ",\n") + json.dumps(event))
        first = False

    def track(record: TraceRecord) -> tuple[int, int]:
        """Process and thread: the service that recorded it, and there the hart or the device."""
        on_hart = _KINDS.get(record.kind) in (*_ACCESSES, "batch")
        key = (record.service, f"hart {record.hart}" if on_hart else record.device)
        if key not in tracks:
            services = {service: ids[0] for (service, _), ids in tracks.items()}
            process = services.get(record.service, len(services) + 1)
            tracks[key] = process, len(tracks) + 1
            if record.service not in services:
                name = f"{machine}: {record.service}"
                put({"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}})
            names = {"ph": "M", "name": "thread_name", "pid": process, "tid": tracks[key][1], "args": {"name": key[1]}}
            put(names)
        return tracks[key]

    def write(records: TraceRecords) -> None:
        nonlocal last_us
        for record in records.records:
            last_us = max(last_us, record.time_ns / 1e3)
            process, thread = track(record)
            put(_event(record, process, thread))
        if records.dropped:
            name = f"{records.dropped} records were not kept"
            put({"ph": "i", "s": "g", "name": name, "pid": 0, "tid": 0, "ts": last_us})

    file.write('{"displayTimeUnit":"ns","traceEvents":[\n')
    try:
        yield write
    finally:
        file.write("\n]}\n")


def _event(record: TraceRecord, process: int, thread: int) -> dict[str, object]:
    kind = _KINDS.get(record.kind, "?")
    what = f"{record.device}.{record.register}" if record.register else record.device or f"{record.value:#x}"
    arguments: dict[str, object] = {"kind": kind}
    if kind in _ACCESSES:
        arguments |= {"value": f"{record.value:#x}", "pc": f"{record.pc:#x}", "write": record.write}
    if kind.startswith("dma"):
        arguments["address"] = f"{record.value:#x}"
    if record.size:
        arguments["size"] = record.size
    if record.sequence:
        arguments["id"] = identity(record.device, record.hart, record.sequence)
    if record.update:
        arguments["update"] = record.update
    if record.text:
        arguments["text"] = record.text
    name = f"{'write' if record.write else 'read'} {what}" if kind in _ACCESSES else f"{kind} {what}"
    event: dict[str, object] = {"name": name, "cat": kind, "pid": process, "tid": thread, "ts": record.time_ns / 1e3}
    if record.duration_ns:
        return event | {"ph": "X", "dur": record.duration_ns / 1e3, "args": arguments}
    return event | {"ph": "i", "s": "t", "args": arguments}
