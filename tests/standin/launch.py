"""`vmesh run` with stand-ins for cpu and devices: `python -P -m tests.standin.launch FLAGS`. Memory is the real one."""

import sys

from vmesh.cli import run
from vmesh.cli.flags.options import RunOptions
from vmesh.cli.plan import MachinePlan
from vmesh.machine import MachineDirectory
from vmesh.spawn import ServiceCommand


def plan(options: RunOptions, machine: MachineDirectory) -> MachinePlan:
    place = ("--machine", str(machine.path))

    def standin(name: str, kind: str, *more: str) -> ServiceCommand:
        return ServiceCommand(name, kind, "tests.standin", (*place, "--name", name, "--kind", kind, *more))

    paused = ("--paused",) if options.paused else ()
    services = (
        ServiceCommand("memory", "memory", "vmesh_services.memory", (*place, "--ram", "1M")),
        standin("cpu", "cpu", *paused),
        standin("uart0", "ns16550a"),
        standin("test", "sifive-test"),
    )
    return MachinePlan(services, {})


if __name__ == "__main__":
    run.plan = plan  # type: ignore[attr-defined]
    sys.exit(run.run(sys.argv[1:]))
