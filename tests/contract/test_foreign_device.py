"""A device that knows only proto/: it attaches, answers accesses and raises its line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from tests.contract.harness import PATIENCE, ROOT, Hart, Irqchip, Machine
from vmesh.v1 import common_pb2 as common
from vmesh.v1 import lifecycle_pb2 as lifecycle
from vmesh.v1.bus_pb2 import Access
from vmesh.v1.memory_pb2 import AddressMap, MapRequest

SCRIPT = Path(__file__).parent / "foreign_device.py"


def test_uses_nothing_of_vmesh_but_the_generated_code() -> None:
    tree = ast.parse(SCRIPT.read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name for name in modules if name and name.startswith("vmesh")} == {"vmesh.v1", "vmesh.v1.packet_pb2"}


def test_attaches_answers_and_raises_its_line(machine: Machine) -> None:
    machine.start_memory("--expect", "odd0")
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(machine.path), "odd0", "0x10009000", "20"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    )
    try:
        answer = machine.dial("memory", common.ROLE_CPU, name="cpu").request(MapRequest(), PATIENCE)
        assert isinstance(answer, AddressMap)
        (device,) = answer.devices
        assert (device.name, device.regions[0].base, device.lines[0].irq) == ("odd0", 0x1000_9000, 20)

        irqchip = Irqchip(machine, "odd0")
        irqchip.until(lambda: irqchip.levels == {0: False}, "the line low")
        hart: Hart = machine.hart("odd0")
        done = hart.batch(Access(offset=0, size=4, write=True, value=6), Access(offset=0, size=4, write=True, value=7))
        irqchip.apply(done.update)
        assert irqchip.levels == {0: True}
        assert irqchip.shadows == {(0, 0, 4): 7}
        assert hart.read(0, size=4) == 7
        assert hart.read(4, size=4) == 2
        assert machine.monitor("odd0").health().kind == "foreign"
        machine.monitor("odd0").ask(lifecycle.Shutdown())
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
