"""HMP's `info`: its topics, one function each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vmesh import show, spaces
from vmesh.migration import snapshots
from vmesh.v1 import bus_pb2, cpu_pb2, gateway_pb2
from vmesh_services.monitor import operations
from vmesh_services.monitor.control import Parts, Work, address_map, counters
from vmesh_services.monitor.hmp.command import Call, Command, Run, qmp_parts
from vmesh_services.monitor.hmp.mappings import Mappings
from vmesh_services.monitor.qmp.handlers import execute
from vmesh_services.monitor.qmp.handlers.devices import Object, tree

_MAX_MAPPINGS = 4096


def _query(call: Call, name: str) -> object:
    answer = execute(call.control, name, {})
    assert not isinstance(answer, Work)
    return answer


def _status(call: Call) -> str:
    status = _query(call, "query-status")
    assert isinstance(status, dict)
    state = str(status["status"])
    if status["running"]:
        return "VM status: running\n"
    return f"VM status: paused{f' ({state})' if state != 'paused' else ''}\n"


def _name(call: Call) -> str:
    return f"{call.control.supervisor.machine.name}\n"


def _version(call: Call) -> str:
    found = _query(call, "query-version")
    assert isinstance(found, dict)
    qemu = found["qemu"]
    return f"{qemu['major']}.{qemu['minor']}.{qemu['micro']} ({found['package']})\n"


def _registers(call: Call) -> Work:
    return Work(_registers_parts(call))


def _registers_parts(call: Call) -> Parts:
    harts = range(call.control.harts) if call.given("all") else [call.hart]
    if call.given("vcpu"):
        harts = [call.control.hart((yield from call.numbers())["vcpu"])]
    text = ""
    for hart in harts:
        found = cpu_pb2.HartRegisters()
        yield from operations.registers(call.control.roster, hart, found)
        text += f"\nCPU#{hart}\n{show.registers(found).partition(chr(10))[2]}\n"
    return text


def _cpus(call: Call) -> Work:
    return Work(_cpus_parts(call))


def _cpus_parts(call: Call) -> Parts:
    status = cpu_pb2.CpuStatus()
    yield from operations.cpu_status(call.control.roster, status)
    pid = call.control.supervisor.services[call.control.roster.cpu].child.pid
    return "".join(
        f"{'*' if hart.hart == call.hart else ' '} CPU #{hart.hart}: thread_id={pid} pc=0x{hart.pc:016x} "
        f"{show.hart_state(hart)}, {hart.retired} instructions\n"
        for hart in status.harts
    )


def _mtree(call: Call) -> Work:
    return Work(_mtree_parts(call))


def _mtree_parts(call: Call) -> Parts:
    found = yield from address_map(call.control.roster)
    rows = [(each.base, each.size, "ram" if each.writable else "rom", each.name, "memory") for each in found.segments]
    rows += [(base, size, "i/o", name, "cpu") for name, base, size in call.control.reserved]
    by_space = {bus_pb2.SPACE_MEMORY: rows}
    for device in found.devices:
        for region in device.regions:
            name = device.name if region.name in ("", device.name) else f"{device.name}.{region.name}"
            base, size = region.base, region.size
            if region.aperture_size:  # where in it, the device says to the cpu only
                name += f" [moves within, size {size:#x}]"
                base, size = region.aperture_base, region.aperture_size
            by_space.setdefault(region.space, []).append((base, size, "i/o", name, device.name))
    lines = []
    for space, rows in sorted(by_space.items()):
        lines.append(f"address-space: {spaces.NAMES[space]}")
        if space == bus_pb2.SPACE_MEMORY:
            lines.append(f"  {0:016x}-{(1 << 64) - 1:016x} (prio 0, i/o): system")
        lines += [
            f"    {base:016x}-{base + size - 1:016x} (prio 0, {kind}): {name} [service {service}]"
            for base, size, kind, name, service in sorted(rows)
        ]
    return "".join(f"{line}\n" for line in lines)


def _qtree(call: Call) -> str:
    lines = ["bus: main-system-bus", "  type System"]
    for service in call.control.devices():
        node = tree(call.control).members["machine"]
        for part in ("peripheral", service.command.name):
            assert isinstance(node, Object)
            node = node.members[part]
        assert isinstance(node, Object)
        lines.append(f'  dev: {node.kind}, id "{service.command.name}"')
        lines += [f"    {name} = {_shown(value)}" for name, value in node.members.items() if name != "type"]
    return "".join(f"{line}\n" for line in lines)


def _shown(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return f"{value} ({value:#x})"
        case _:
            return f'"{value}"'


def _qom_tree(call: Call) -> str:
    lines: list[str] = []

    def walk(name: str, node: Object, depth: int) -> None:
        lines.append(f"{'  ' * depth}/{name} ({node.kind})")
        for below, value in node.members.items():
            if isinstance(value, Object):
                walk(below, value, depth + 1)

    machine = tree(call.control).members["machine"]
    assert isinstance(machine, Object)
    walk("machine", machine, 0)
    return "".join(f"{line}\n" for line in lines)


def _irq(call: Call) -> Work:
    return Work(_irq_parts(call))


def _irq_parts(call: Call) -> Parts:
    found = yield from address_map(call.control.roster)
    lines = sorted((line.irq, device.name, line.name) for device in found.devices for line in device.lines)
    text = "".join(f"  source {irq:>2}: {device}{f'.{name}' if name else ''}\n" for irq, device, name in lines)
    counted = ""
    for service in call.control.roster.devices:
        known = yield from counters(service)
        if updates := known.get("interrupts", known.get("updates")):
            counted += f"  {service}: {updates} updates\n"
    return f"PLIC sources:\n{text}what devices sent to the PLIC:\n{counted}"


def _mem(call: Call) -> Work:
    return Work(_mem_parts(call))


def _mem_parts(call: Call) -> Parts:
    mappings = Mappings()
    yield from mappings.collect(call.control, call.hart)
    if not mappings.levels:
        return "No translation or protection\n"
    lines = ["vaddr            paddr            size             attr"]
    lines.append("---------------- ---------------- ---------------- -------")
    for address, physical, size, attributes in mappings.found[:_MAX_MAPPINGS]:
        lines.append(f"{address:016x} {physical:016x} {size:016x} {attributes}")
    if mappings.cut or len(mappings.found) > _MAX_MAPPINGS:
        lines.append("... and more")
    return "".join(f"{line}\n" for line in lines)


def _jit(call: Call) -> Work:
    return Work(
        _counters_of(call, lambda name: "region" in name or "instructions" in name or name == "longest_pause_us")
    )


def _bus(call: Call) -> Work:
    names = {field.name for field in cpu_pb2.BusCounters.DESCRIPTOR.fields}
    return Work(_counters_of(call, names.__contains__))


def _counters_of(call: Call, wanted: Mapping[str, int] | object) -> Parts:
    assert callable(wanted)
    found = yield from counters(call.control.roster.cpu)
    return "".join(f"{name.replace('_', ' '):<28}{value}\n" for name, value in found.items() if wanted(name))


def _services(call: Call) -> str:
    status: gateway_pb2.MachineStatus = call.control.supervisor.machine_status()
    return f"{show.services(status)}\n"


def _network(call: Call) -> str:
    text = ""
    for service in call.control.devices():
        options = call.control.options(service.command.name)
        if "netdev" in options:
            kind, _, rest = options["netdev"].partition(",")
            name, mac = service.command.name, options.get("mac", "")
            text += f"{name}: index=0,type=nic,model={service.command.kind},macaddr={mac}\n"
            text += f" \\ {name}: index=0,type={kind},{rest}\n"
    return text


def _block(call: Call) -> str:
    text = ""
    found = _query(call, "query-block")
    assert isinstance(found, list)
    for disk in found:
        inserted = disk["inserted"]
        caching = "writeback" if inserted["cache"]["writeback"] else "writethrough"
        caching += ", ignore flushes" if inserted["cache"]["no-flush"] else ""
        text += f"{disk['device']} ({inserted['node-name']}): {inserted['file']} ({inserted['drv']}"
        text += ", read-only)\n" if inserted["ro"] else ")\n"
        text += f"    Attached to:      {disk['qdev']}\n    Cache mode:       {caching}\n"
    return text


def _blockstats(call: Call) -> Work:
    return Work(_blockstats_parts(call))


def _blockstats_parts(call: Call) -> Parts:
    found = yield from qmp_parts(call.control, "query-blockstats", {})
    assert isinstance(found, list)
    return "".join(
        f"{disk['device']}: {' '.join(f'{name}={value}' for name, value in disk['stats'].items())}\n" for disk in found
    )


def _balloon(call: Call) -> Work:
    return Work(_balloon_parts(call))


def _balloon_parts(call: Call) -> Parts:
    found = yield from qmp_parts(call.control, "query-balloon", {})
    assert isinstance(found, dict)
    return f"balloon: actual={found['actual'] >> 20}\n"


def _chardev(call: Call) -> str:
    found = _query(call, "query-chardev")
    assert isinstance(found, list)
    return "".join(f"{each['label']}: filename={each['filename']}\n" for each in found)


def _memory_size(call: Call) -> str:
    found = _query(call, "query-memory-size-summary")
    assert isinstance(found, dict)
    return f"base memory: {found['base-memory']}\nplugged memory: {found['plugged-memory']}\n"


def _migrate(call: Call) -> str | Work:
    answer = execute(call.control, "query-migrate", {})
    return replace(answer, parts=_migrate_parts(answer.parts)) if isinstance(answer, Work) else _migration_text(answer)


def _migrate_parts(parts: Parts) -> Parts:
    return _migration_text((yield from parts))


def _migration_text(found: object) -> str:
    if not isinstance(found, dict) or not found:
        return "no migration\n"
    lines = []
    for name, value in found.items():
        if isinstance(value, dict):
            lines += [f"{name} {below}: {amount}" for below, amount in value.items()]
        else:
            lines.append(f"{'Migration status' if name == 'status' else name}: {value}")
    return "".join(f"{line}\n" for line in lines)


def _snapshots(call: Call) -> str:
    lines = [f"{snapshot.tag:<24}{snapshot.size:>12}  {snapshot.problem}".rstrip() for snapshot in snapshots.found()]
    return "".join(f"{line}\n" for line in [f"{'TAG':<24}{'BYTES':>12}", *lines]) if lines else "no snapshots\n"


def _topic(names: str, parameters: str, help_: str, run: Run) -> Command:
    return Command(tuple(names.split("|")), parameters, help_, run)


TOPICS: tuple[Command, ...] = (
    _topic("balloon", "", "show balloon information", _balloon),
    _topic("block", "", "show the disks", _block),
    _topic("blockstats", "", "show what the disks did", _blockstats),
    _topic("bus", "", "show what the bus between harts and devices did", _bus),
    _topic("chardev", "", "show the character devices", _chardev),
    _topic("cpus", "", "show infos for each CPU", _cpus),
    _topic("irq", "", "show the interrupt lines, and what came through them", _irq),
    _topic("jit", "", "show dynamic compiler info", _jit),
    _topic("mem", "", "show the active virtual memory mappings", _mem),
    _topic("memory_size_summary", "", "show the amount of initially allocated memory", _memory_size),
    _topic("migrate", "", "show migration status", _migrate),
    _topic("mtree", "", "show memory tree, and which service has which part", _mtree),
    _topic("name", "", "show the current VM name", _name),
    _topic("network", "", "show the network state", _network),
    _topic("qom-tree", "", "show QOM composition tree", _qom_tree),
    _topic("qtree", "", "show device tree", _qtree),
    _topic("registers", "all:-a,vcpu:l?", "show the cpu registers (-a: of all harts)", _registers),
    _topic("services", "", "show the services of the machine", _services),
    _topic("status", "", "show the current VM status (running|paused)", _status),
    _topic("snapshots", "", "show the snapshots", _snapshots),
    _topic("version", "", "show the version", _version),
)

BY_NAME: Mapping[str, Command] = {name: topic for topic in TOPICS for name in topic.names}
