"""The commands of QMP: one function each, in the modules of the schema."""

from vmesh_services.monitor.qmp.handlers import block, control, devices, machine, migration, run_state
from vmesh_services.monitor.qmp.handlers.registry import HANDLERS, execute, handles

__all__ = ["HANDLERS", "block", "control", "devices", "execute", "handles", "machine", "migration", "run_state"]
