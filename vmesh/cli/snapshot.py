"""`vmesh snapshot save|load|list|delete`."""

from __future__ import annotations

import json
import sys
import time

from vmesh.client import GatewayError, MachineClient
from vmesh.errors import VmeshError
from vmesh.machine import MachineError, find
from vmesh.migration import snapshots
from vmesh.v1 import migration_pb2


def save_or_load(action: str, name: str, snapshot: str) -> int:
    """Have a machine write or take a snapshot. Returns the exit status; errors are one line on stderr."""
    try:
        path = snapshots.path_of(snapshot)
        began = time.monotonic()
        with MachineClient(find(name)) as client:
            status = client.snapshot_save(path) if action == "save" else client.snapshot_load(path)
    except (MachineError, GatewayError, VmeshError) as error:
        print(f"vmesh snapshot {action}: {error}", file=sys.stderr)
        return 1
    for warning in status.warnings:
        print(f"vmesh snapshot {action}: {warning}", file=sys.stderr)
    took = time.monotonic() - began
    if action == "save":
        size = status.ram.transferred / 1e6
        print(f"saved {path}: {size:.1f} MB in {took:.1f} s, the guest stood still for {status.downtime_ms:.0f} ms")
    else:
        print(f"loaded {path} in {took:.1f} s")
    return 0


def show(*, as_json: bool) -> int:
    """Print the snapshots that have tags."""
    found = list(snapshots.found())
    if as_json:
        print(json.dumps([_record(each) for each in found], indent=1))
        return 0
    if not found:
        print(f"no snapshots in {snapshots.folder()}")
        return 0
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("tag", "machine", "RAM", "saved", "size", "disks"):
        table.add_column(column, justify="right" if column in ("RAM", "size") else "left", overflow="fold")
    for each in found:
        if each.configuration is None:
            table.add_row(each.tag, "", "", "", "", each.problem)
            continue
        ram = f"{_ram_bytes(each.configuration) >> 20} MiB"
        saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.configuration.created_ns / 1e9))
        disks = ", ".join(disk.path for disk in each.configuration.disks)
        table.add_row(each.tag, each.configuration.machine, ram, saved, f"{each.size / 1e6:.1f} MB", disks)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 0


def delete(snapshot: str) -> int:
    """Delete a snapshot, if it is one."""
    try:
        snapshots.delete(snapshots.path_of(snapshot))
    except VmeshError as error:
        print(f"vmesh snapshot delete: {error}", file=sys.stderr)
        return 1
    return 0


def _record(found: snapshots.Snapshot) -> dict[str, object]:
    configuration = found.configuration
    if configuration is None:
        return {"tag": found.tag, "file": str(found.path), "problem": found.problem}
    return {
        "tag": found.tag,
        "file": str(found.path),
        "bytes": found.size,
        "machine": configuration.machine,
        "saved": configuration.created_ns / 1e9,
        "ram_bytes": _ram_bytes(configuration),
        "disks": [disk.path for disk in configuration.disks],
    }


def _ram_bytes(configuration: migration_pb2.Configuration) -> int:
    return sum(each.size for each in configuration.segments if each.writable)
