"""Who reads a clock of the host, and why. All else asks the machine's clock (vmesh.time)."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.unit.test_imports import ROOT, modules

READS = {
    "monotonic", "monotonic_ns", "time", "time_ns", "perf_counter", "perf_counter_ns", "clock_gettime",
    "clock_gettime_ns",
}  # fmt: skip

REASONS = {
    "the clock itself: kind `host`": ("vmesh.time", "vmesh_services.cpu.clock"),
    "native code's face of it, and where it begins before the service's clock takes over": (
        "vmesh_services.cpu.core.timers",
        "vmesh_services.cpu.core.harts",
    ),
    "timers of the host's time, and of guest time as it falls due": ("vmesh.loop",),
    "patience with a peer, a process, a file or a user": (
        "vmesh.chardev",
        "vmesh.cli.console",
        "vmesh.cli.deploy",
        "vmesh.cli.migrate",
        "vmesh.cli.run",
        "vmesh.cli.serve",
        "vmesh.connecting",
        "vmesh.files",
        "vmesh.deploy.engines",
        "vmesh.guest.image",
        "vmesh.service",
        "vmesh.wire",
        "vmesh_services.cpu.bus.irqchip",
        "vmesh_services.cpu.bus.link",
        "vmesh_services.cpu.core.doorbell",
        "vmesh_services.cpu.core.hart_thread",
        "vmesh_services.cpu.service",
        "vmesh_services.cpu.core.translator_process",
        "vmesh_services.devices.virtio_blk.device",
        "vmesh_services.devices.virtio_blk.nbd",
        "vmesh_services.devices.virtio_blk.qemu_nbd",
        "vmesh_services.external.__main__",
        "vmesh_services.memory.cache.service",
        "vmesh_services.memory.presence",
        "vmesh_services.memory.service",
        "vmesh_services.migration.channels",
        "vmesh_services.migration.incoming",
        "vmesh_services.migration.pager",
        "vmesh_services.migration.returned",
        "vmesh_services.monitor.link",
        "vmesh_services.monitor.migration",
        "vmesh_services.monitor.network",
        "vmesh_services.monitor.supervisor.ending",
        "vmesh_services.monitor.supervisor.health",
        "vmesh_services.monitor.supervisor.lives",
        "vmesh_services.monitor.supervisor.runs",
        "vmesh_services.monitor.supervisor.supervised",
        "vmesh_services.monitor.supervisor.supervisor",
    ),
    "how long something took, for people": (
        "vmesh.cli.ps",
        "vmesh.cli.snapshot",
        "vmesh.cli.top",
        "vmesh.device.serving",
        "vmesh.log",
        "vmesh.machine",
        "vmesh.trace",
        "vmesh_services.cpu.core.pages",
        "vmesh_services.cpu.core.regions",
        "vmesh_services.cpu.core.trace",
        "vmesh_services.cpu.core.translator",
        "vmesh_services.migration.job",
        "vmesh_services.migration.status",
        "vmesh_services.monitor.__main__",
        "vmesh_services.monitor.events",
        "vmesh_services.monitor.swap",
    ),
    "rates of bytes, and the downtime, of which a host's user has said how much may be": (
        "vmesh_services.migration.connection",
        "vmesh_services.migration.outgoing",
        "vmesh_services.migration.snapshot",
    ),
    "the age of files of the host": ("vmesh_services.cpu.core.image", "vmesh_services.cpu.core.region_store"),
    "files of the host have the host's times": ("vmesh_services.devices.virtio_9p.server",),
    "fairness between a queue and registers: under virtual time, turns will be counted": (
        "vmesh.virtio.device",
        "vmesh_services.devices.virtio_net.device",
    ),
}


def reads(source: str) -> Iterator[int]:
    """The lines of `source` in which a clock of the host is read."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="time"), attr=name) if name in READS:
                yield node.lineno
            case ast.Attribute(value=ast.Name(id="datetime" | "date"), attr="now" | "utcnow" | "today"):
                yield node.lineno
            case ast.Attribute(attr="clock_gettime") | ast.Name(id="host_ns"):
                yield node.lineno
            case ast.ImportFrom(module="time"):
                yield node.lineno


def test_whoever_reads_a_clock_of_the_host_has_a_reason() -> None:
    found = {module for module, path in modules() if any(reads(path.read_text(encoding="utf-8")))}
    known = [module for modules_ in REASONS.values() for module in modules_]
    assert len(known) == len(set(known))
    assert found == set(known), f"without a reason: {found - set(known)}; no more: {set(known) - found}"


def test_readers_are_found() -> None:
    source = "import time\nfrom time import time_ns\nfrom vmesh.time import host_ns\ntime.monotonic()\nhost_ns()\n"
    assert sorted(reads(source)) == [2, 4, 5]
    assert not list(reads("def f(clock):\n    return clock.now_ns() + clock.wall_ns()\n"))
    assert (ROOT / "vmesh" / "time.py").exists()
