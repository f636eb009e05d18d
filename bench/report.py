"""What a benchmark gives: rows of figures, as a table for people and as JSON for programs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Sample:
    """Repeated measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def show(self, digits: int = 2) -> str:
        """The median, and the range where there is one: `4.51 (4.42-4.80)`."""
        text = f"{self.median:,.{digits}f}"
        if len(self.values) > 1:
            text += f" ({min(self.values):,.{digits}f}-{max(self.values):,.{digits}f})"
        return text


@dataclass(frozen=True, slots=True)
class Row:
    """One figure; `peer` is QEMU's, `bar` what was promised and whether it holds (empty: nothing was)."""

    what: str
    unit: str
    ours: Sample
    peer: Sample | None = None
    digits: int = 2
    bar: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over the peer's, of the medians."""
        if self.peer is None or not self.peer.median:
            return None
        return self.ours.median / self.peer.median


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one benchmark."""

    title: str
    rows: Sequence[Row]
    notes: Sequence[str] = field(default=())
    peer: str = "QEMU"  # whose figures stand beside ours

    def print(self, console: Console) -> None:
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("")
        for head in ("unit", "vmesh", self.peer, f"vmesh/{self.peer}", "bar"):
            table.add_column(head, justify="left" if head in ("unit", "bar") else "right", no_wrap=True)
        for row in self.rows:
            ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
            peer = row.peer.show(row.digits) if row.peer else ""
            table.add_row(row.what, row.unit, row.ours.show(row.digits), peer, ratio, row.bar)
        console.print(table)
        for note in self.notes:
            console.print(f"  {note}", highlight=False)

    def data(self) -> dict[str, object]:
        """For --json: every value, not only the medians."""
        return {
            "title": self.title,
            "rows": [
                {
                    "what": row.what,
                    "unit": row.unit,
                    "vmesh": row.ours.values,
                    self.peer.lower(): row.peer.values if row.peer else None,
                    "ratio_of_medians": row.ratio,
                    "bar": row.bar,
                }
                for row in self.rows
            ],
            "notes": list(self.notes),
        }


def held(bar: str, holds: bool) -> str:
    """A bar with its verdict."""
    return f"{bar}: {'yes' if holds else 'NO'}"
