"""The target description: valid XML, and every register of the cpu once, under gdb's number."""

from __future__ import annotations

from xml.etree import ElementTree

from tests.cpu_harness import Cpu
from vmesh.v1 import cpu_pb2
from vmesh_services.cpu.core.registers import Registers
from vmesh_services.cpu.isa.riscv.csr import CSRS
from vmesh_services.monitor.gdb.target import Target, describe


def features(target: Target) -> dict[str, dict[str, ElementTree.Element]]:
    root = ElementTree.fromstring(target.xml)
    assert root.tag == "target"
    assert root.findtext("architecture") == "riscv:rv64"
    return {
        str(each.get("name")): {str(reg.get("name")): reg for reg in each.iter("reg")} for each in root.iter("feature")
    }


def test_registers_have_gdbs_numbers() -> None:
    target = describe(Registers(Cpu(count=2).harts).describe())
    found = features(target)
    general = found["org.gnu.gdb.riscv.cpu"]
    assert [general[name].get("regnum") for name in ("zero", "ra", "sp", "t6", "pc")] == ["0", "1", "2", "31", "32"]
    assert len(general) == 33
    assert found["org.gnu.gdb.riscv.fpu"]["f31"].get("regnum") == "64"
    assert found["org.gnu.gdb.riscv.csr"]["mstatus"].get("regnum") == str(65 + 0x300)
    assert found["org.gnu.gdb.riscv.virtual"]["priv"].get("regnum") == "4161"
    numbers = [reg.get("regnum") for each in found.values() for reg in each.values()]
    assert len(numbers) == len(set(numbers)) == len(target.registers)
    assert target.harts == 2


def test_registers_are_those_of_the_extensions() -> None:
    plain = features(describe(Registers(Cpu(features={"i", "zicsr"}).harts).describe()))
    assert "org.gnu.gdb.riscv.fpu" not in plain
    assert "fcsr" not in plain["org.gnu.gdb.riscv.csr"]
    assert "stimecmp" not in plain["org.gnu.gdb.riscv.csr"]
    single = features(describe(Registers(Cpu(features={"i", "zicsr", "f"}).harts).describe()))
    assert single["org.gnu.gdb.riscv.fpu"]["f0"].get("bitsize") == "32"


def test_every_register_is_read_and_what_can_be_is_written() -> None:
    cpu = Cpu()
    known = Registers(cpu.harts)
    names = [each.name for each in known.describe().registers]
    values = known.read(cpu_pb2.ReadRegisters(names=names))
    assert [each.name for each in values.registers] == names
    assert (
        {"satp", "mepc", "fcsr"}
        <= set(names)
        <= {each.name for each in CSRS.values()} | {each.name for each in known.all(0).registers}
    )

    wanted = {"a0": 7, "zero": 5, "pc": 0x8000_0123, "f3": 9, "mepc": 0x8000_0001, "mhartid": 3, "priv": 1}
    known.write(cpu_pb2.WriteRegisters(registers=[cpu_pb2.RegisterValue(name=n, value=v) for n, v in wanted.items()]))
    found = known.read(cpu_pb2.ReadRegisters(names=list(wanted)))
    assert {each.name: each.value for each in found.registers} == wanted | {
        "zero": 0, "pc": 0x8000_0122, "mepc": 0x8000_0000, "mhartid": 0,
    }  # fmt: skip
