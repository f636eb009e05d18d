"""`vmesh ps`: the running machines, from their machine.json; no machine is asked, so one that hangs is listed too."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from vmesh.machine import RECORD, MachineError, MachineRecord, machines

if TYPE_CHECKING:
    from rich.table import Table


_COLUMNS = ("machine", "machine state", "up", "service", "kind", "pid", "epoch", "state")
#: What a narrow terminal has no room for, more and more of it.
_LESS = ((), ("kind",), ("kind", "epoch"), ("kind", "epoch", "up"), ("kind", "epoch", "up", "machine state"))
_ANY_WIDTH = 1 << 16


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
    from rich.console import Console
    from rich.measure import Measurement

    if not records:
        print("no machine is running")
        return
    # Where no terminal limits them, lines are as wide as they need to be.
    console = Console(width=None if sys.stdout.isatty() else 160)
    for left_out in _LESS:
        table = _table(records, left_out)
        if Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), table).maximum <= console.width:
            break
    console.print(table)
    if left_out:
        console.print(f"(not shown here: {', '.join(left_out)})")


def _table(records: list[MachineRecord], left_out: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    shown = [column for column in _COLUMNS if column not in left_out]
    table = Table(box=box.SIMPLE_HEAD)
    for column in shown:
        right = column in ("pid", "epoch", "up")
        table.add_column(column.removeprefix("machine "), justify="right" if right else "left", overflow="fold")
    for record in records:
        head = (record.name, record.state, _duration(time.time() - record.created))
        rows = [(*head, "monitor", "monitor", str(record.pid), "1", record.state)]
        rows += [
            ("", "", "", each.name, each.kind, str(each.pid), str(each.epoch), each.state) for each in record.services
        ]
        for row in rows:
            table.add_row(*(cell for column, cell in zip(_COLUMNS, row, strict=True) if column in shown))
        table.add_section()
    return table


def _duration(seconds: float) -> str:
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole % 60:02d} s"
