"""docs/pictures/mesh.svg: the processes of a machine, and what is between them, drawn from the machine as data.

python -P tools/draw_mesh.py > docs/pictures/mesh.svg
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from vmesh.board.parts import Board, Carrier, Part
from vmesh.cli.flags.parsing import parse
from vmesh.cli.plan import board_of

#: The machine that is drawn.
FLAGS = ("-smp", "2", "-m", "1G", "-device", "virtio-rng-device,id=rng",
         "-netdev", "user,id=n", "-device", "virtio-net-device,netdev=n,id=net")  # fmt: skip
_WIDTH, _LEFT, _MIDDLE, _RIGHT = 900, 20, 330, 650
_BOX, _LINE, _GAP = 230, 17, 14  # pixels: the width of a box, the height of a line of text, between boxes
_TOP = 130
_STYLE = """
text { font: 13px ui-monospace, "DejaVu Sans Mono", Menlo, monospace; fill: #1b1f24 }
.name { font-weight: 700 } .wire { fill: #57606a; font-size: 12px }
.service { fill: #ddf4ff; stroke: #0969da } .shared { fill: #fff8c5; stroke: #9a6700 }
.way { stroke: #57606a; fill: none; stroke-width: 1.5; marker-end: url(#tip) }
.bus { stroke: #57606a; fill: none; stroke-width: 1.5 }
"""


@dataclass(frozen=True, slots=True)
class Box:
    """A process, or what processes share: its name in bold, and lines of text."""

    name: str
    lines: tuple[str, ...]
    x: int
    y: int
    kind: str = "service"
    width: int = _BOX

    @property
    def height(self) -> int:
        return _LINE * (1 + len(self.lines)) + 12

    @property
    def middle(self) -> int:
        return self.y + self.height // 2

    def draw(self) -> Iterator[str]:
        place = f'x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}"'
        yield f'<rect class="{self.kind}" {place} rx="6"/>'
        for number, line in enumerate((self.name, *self.lines)):
            style = ' class="name"' if number == 0 else ""
            yield f'<text{style} x="{self.x + 10}" y="{self.y + 18 + number * _LINE}">{escape(line)}</text>'


def _place(part: Part) -> str:
    interrupt = f", interrupt {part.irq}" if part.irq else ""
    return f"{part.range.base:#x}{interrupt}"


def draw(board: Board) -> str:
    """An SVG of the machine's processes."""
    devices = []
    y = _TOP
    for part in board.carried_by(Carrier.SERVICE):
        at = board[part.bus] if part.bus else part
        devices.append(Box(part.name, (part.kind, _place(at)), _RIGHT, y))
        y += devices[-1].height + _GAP
    harts = [f"hart {number}: a thread" for number in range(board.harts)]
    carried = [f"{part.name}: {_place(part)}" for part in board.carried_by(Carrier.CPU)]
    cpu = Box("cpu", (*harts, *carried, "guest time"), _MIDDLE, _TOP)
    held = [f"{part.name}: {part.range}" for part in board.carried_by(Carrier.MEMORY)]
    memory = Box("memory", tuple(held), _LEFT, _TOP)
    aside = cpu.x + 60  # cpu's own way to RAM is beside its helper
    translator = Box("translator", ("compiles hot code",), aside, cpu.y + cpu.height + 3 * _GAP, width=_BOX - 60)
    bottom = max(y - _GAP, translator.y + translator.height) + 3 * _GAP
    across = _WIDTH - 2 * _LEFT
    ram = Box("guest RAM", ("files that memory, cpu and devices map",), _LEFT, bottom, "shared", across)
    duties = "starts each process, asks whether it is well; the door for people: gRPC, QMP, HMP, gdb"
    monitor = Box("monitor", (duties,), _LEFT, 20, width=across)
    bus = (cpu.x + _BOX + _RIGHT) // 2
    first, last = devices[0], devices[-1]
    body = [
        *monitor.draw(), *memory.draw(), *cpu.draw(), *translator.draw(), *ram.draw(),
        *(line for box in devices for line in box.draw()),
        f'<path class="bus" d="M{cpu.x + _BOX},{first.middle} H{bus} V{last.middle}"/>',
        *(f'<path class="way" d="M{bus},{box.middle} H{box.x}"/>' for box in devices),
        f'<text class="wire" text-anchor="middle" x="{bus}" y="{first.y - 24}">accesses and interrupts:</text>',
        f'<text class="wire" text-anchor="middle" x="{bus}" y="{first.y - 8}">protobuf over ZeroMQ</text>',
        f'<path class="bus" d="M{translator.x + 80},{cpu.y + cpu.height} V{translator.y}"/>',
        *(
            f'<path class="way" d="M{x},{box.y + box.height} V{ram.y}"/>'
            for x, box in ((_LEFT + _BOX // 2, memory), (cpu.x + 30, cpu), (_RIGHT + _BOX // 2, last))
        ),
    ]  # fmt: skip
    return _page(body, ram.y + ram.height + 20)


def _page(body: Sequence[str], height: int) -> str:
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#57606a"/></marker>'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">'
    return "\n".join((head, f"<style>{_STYLE}</style>", f"<defs>{tip}</defs>", *body, "</svg>", ""))


if __name__ == "__main__":
    print(draw(board_of(parse(FLAGS))), end="")
