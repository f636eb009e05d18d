"""`vmesh ps`: the running machines, from their machine.json; no machine is asked, so one that hangs is listed too."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict

from vmesh.machine import RECORD, MachineError, MachineRecord, machines


def ps(*, as_json: bool) -> int:
    """Print the list. Returns the exit status."""
    records: list[MachineRecord] = []
    status = 0
    try:
        for machine in machines():
            try:
                records.append(machine.read_record())
            except MachineError as error:
                if machine.alive() and (machine.path / RECORD).exists():  # else it has ended since, or just begins
                    print(f"vmesh ps: {error}", file=sys.stderr)
                    status = 1
    except MachineError as error:
        print(f"vmesh ps: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps([asdict(record) for record in records], indent=1))
    else:
        _print_table(records)
    return status


def _print_table(records: list[MachineRecord]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if not records:
        print("no machine is running")
        return
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("machine", "state", "up", "service", "kind", "pid", "epoch", "state"):
        table.add_column(column, justify="right" if column in ("pid", "epoch", "up") else "left", overflow="fold")
    for record in records:
        head = [record.name, record.state, _duration(time.time() - record.created)]
        table.add_row(*head, "monitor", "monitor", str(record.pid), "1", record.state)
        for service in record.services:
            cells = (service.name, service.kind, str(service.pid), str(service.epoch), service.state)
            table.add_row("", "", "", *cells)
        table.add_section()
    # Where no terminal limits them, lines are as wide as they need to be.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _duration(seconds: float) -> str:
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole % 60:02d} s"
