"""`vmesh migration inspect FILE`: what is in a stream, as far as it is sound."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path

from google.protobuf import json_format

from vmesh.errors import VmeshError
from vmesh.migration import records, snapshots
from vmesh.migration.pages import decode, parse_runs
from vmesh.v1 import migration_pb2 as messages

_ENCODINGS = {
    messages.PAGES_ZERO: "zero",
    messages.PAGES_PLAIN: "plain",
    messages.PAGES_ZSTD: "zstd",
    messages.PAGES_DELTA: "changed",
}


@dataclass(slots=True)
class Contents:
    """`problem` is why reading ended before the stream did."""

    configuration: messages.Configuration = field(default_factory=messages.Configuration)
    records: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    pages: Counter[str] = field(default_factory=Counter)
    sections: list[dict[str, object]] = field(default_factory=list)
    whole: bool = False
    problem: str = ""


def inspect(path: Path, *, as_json: bool) -> int:
    """Print it. Returns the exit status: 1 for a stream that is damaged or cut off."""
    contents = Contents()
    try:
        with open(snapshots.open_file(path), "rb") as file:
            source = snapshots.FileSource(file.fileno())
            _read(records.Reader(source), contents)
            if behind := os.fstat(file.fileno()).st_size - source.offset:
                contents.problem, contents.whole = f"{behind} bytes are behind its end", False
    except OSError as error:
        contents.problem = f"{path}: {error.strerror}"
    except VmeshError as error:
        contents.problem = str(error)
    if contents.problem and not contents.records and not as_json:
        pass  # there is nothing to show
    elif as_json:
        made = {each.name: getattr(contents, each.name) for each in fields(contents)}
        made["configuration"] = json_format.MessageToDict(contents.configuration)
        print(json.dumps(made, indent=1))
    else:
        _print(contents)
    if contents.problem:
        of = "" if str(path) in contents.problem else f"{path}: "
        print(f"vmesh migration inspect: {of}{contents.problem}", file=sys.stderr)
    return 0 if contents.whole else 1


def _read(reader: records.Reader, contents: Contents) -> None:
    contents.configuration = snapshots.read_head(reader)
    sizes = [each.size // 4096 for each in contents.configuration.segments]
    while True:
        record = reader.next()
        name = messages.RecordKind.Name(record.kind).removeprefix("RECORD_")
        contents.records[name] += 1
        contents.bytes[name] += len(record.payload)
        match record.kind:
            case messages.RECORD_PAGES:
                encoding = _ENCODINGS.get(parse_runs(record)[0].encoding, "unknown")
                contents.pages[encoding] += len(decode(record, sizes).numbers)
            case messages.RECORD_SECTION_FULL | messages.RECORD_SECTION_START:
                section = records.parse(messages.Section, record)
                contents.sections.append(
                    {
                        "service": section.service or "RAM",
                        "type": section.type,
                        "version": section.version,
                        "bytes": section.size,
                    }
                )
            case messages.RECORD_END:
                contents.whole = True
                return


def _print(contents: Contents) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    configuration = contents.configuration
    saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(configuration.created_ns / 1e9))
    console.print(f"board {configuration.board}, machine {configuration.machine}, of {saved}", highlight=False)
    for segment in configuration.segments:
        console.print(f"memory {segment.name}: {segment.base:#x}, {segment.size >> 10} KiB", highlight=False)
    for disk in configuration.disks:
        console.print(f"disk of {disk.service}, not in here: {disk.path}, {disk.size} bytes", highlight=False)
    pages = ", ".join(f"{count} {name}" for name, count in contents.pages.items()) or "none"
    console.print(f"pages: {pages}", highlight=False)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("section", "type", "version", "bytes"):
        table.add_column(column, justify="right" if column in ("version", "bytes") else "left", overflow="fold")
    for section in contents.sections:
        table.add_row(*(str(section[key]) for key in ("service", "type", "version", "bytes")))
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("records", "count", "bytes"):
        table.add_column(column, justify="left" if column == "records" else "right")
    for name, count in contents.records.items():
        table.add_row(name, f"{count:,}", f"{contents.bytes[name]:,}")
    console.print(table)
