"""The schema of QMP: one description from which parsing, checking, introspection and docs/qmp.md are made.

Names, arguments and results are QEMU's (its qapi/*.json, version 7.2); of results, what a machine of processes has.
Where a command is ours its name begins with `__org.vmesh_`, as QEMU asks of others (docs/interop/qmp-spec).
"""

from __future__ import annotations

from vmesh_services.monitor.qmp.schema import block, control, devices, machine, migration, run_state
from vmesh_services.monitor.qmp.types import Schema

SCHEMA = Schema(
    (control.MODULE, run_state.MODULE, machine.MODULE, devices.MODULE, block.MODULE, migration.MODULE),
)
