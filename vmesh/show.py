"""The gateway's answers as plain text, for `vmesh status` and for the prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmesh.v1 import cpu_pb2, gateway_pb2

_STATES = {
    gateway_pb2.MACHINE_STARTING: "starting",
    gateway_pb2.MACHINE_RUNNING: "running",
    gateway_pb2.MACHINE_PAUSED: "paused",
    gateway_pb2.MACHINE_ENDING: "ending",
}
HART_STATES = {
    cpu_pb2.HART_RUNNING: "running",
    cpu_pb2.HART_WAITING: "waiting for an interrupt",
    cpu_pb2.HART_PAUSED: "paused",
    cpu_pb2.HART_BUS: "waiting for a device",
    cpu_pb2.HART_PAGE: "waiting for a page of memory",
}
_BUS_FIELDS = cpu_pb2.BusCounters.DESCRIPTOR.fields
PRIVILEGES = {cpu_pb2.PRIVILEGE_USER: "U", cpu_pb2.PRIVILEGE_SUPERVISOR: "S", cpu_pb2.PRIVILEGE_MACHINE: "M"}


def state(status: gateway_pb2.MachineStatus) -> str:
    """One line: `machine 'a' is paused (postmigrate), up 12.3 s`."""
    found = _STATES.get(status.state, "unknown")
    more = f" ({status.run_state})" if status.run_state not in ("", "running", "paused") else ""
    text = f"machine '{status.name}' is {found}{more}, up {status.uptime_seconds:.1f} s"
    return text + (f": {status.last_error}" if status.last_error else "")


def services(status: gateway_pb2.MachineStatus) -> str:
    """A table of the services."""
    rows = [
        (service.name, service.kind, str(service.pid), str(service.epoch), service.state, service.last_error)
        for service in status.services
    ]
    return _table(("name", "kind", "pid", "epoch", "state", "last error"), rows)


def hart_state(hart: cpu_pb2.HartStatus) -> str:
    """`running`, `waiting for a device (blk0)` and the like."""
    text = HART_STATES.get(hart.state, "unknown")
    return f"{text} ({hart.waits_for})" if hart.waits_for else text


def machine(status: gateway_pb2.MachineStatus) -> str:
    """All of it: state, services, harts, bus."""
    harts = [
        (
            str(hart.hart),
            hart_state(hart),
            PRIVILEGES.get(hart.privilege, "?"),
            f"0x{hart.pc:016x}",
            f"{hart.retired:,}",
        )
        for hart in status.harts
    ]
    complaints = [
        (service.name, what, f"{count:,}")
        for service in status.services
        for what, count in sorted(service.complaints.items())
    ]
    bus = [(field.name.replace("_", " "), f"{getattr(status.bus, field.name):,}") for field in _BUS_FIELDS]
    parts = [state(status), *(["\n".join(f"warning: {line}" for line in status.warnings)] if status.warnings else [])]
    parts.append(services(status))
    if complaints:
        parts.append(_table(("name", "complaint", "count"), complaints))
    if harts:
        parts.append(_table(("hart", "state", "mode", "pc", "instructions retired"), harts))
    if status.HasField("bus"):
        parts.append(_table(("bus", "count"), bus))
    return "\n\n".join(parts)


def registers(answer: cpu_pb2.HartRegisters) -> str:
    """Four registers a line."""
    cells = [f"{register.name:<14}{register.value:016x}" for register in answer.registers]
    lines = ["  ".join(cells[place : place + 4]) for place in range(0, len(cells), 4)]
    return "\n".join([f"hart {answer.hart}", *lines])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )
