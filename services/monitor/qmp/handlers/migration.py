"""Migration and snapshots. This machine has no migration service: whoever brings one registers its own handlers."""

from __future__ import annotations

from services.monitor.control import Control
from services.monitor.qmp.check import Json
from services.monitor.qmp.errors import QmpError
from services.monitor.qmp.handlers.registry import handles
from services.monitor.qmp.schema import migration


@handles(*(command.name for command in migration.MODULE.commands))
def _no_migration(control: Control, arguments: Json) -> object:
    raise QmpError("this machine has no migration service: neither migration nor snapshots")


@handles("query-migrate")
def _query_migrate(control: Control, arguments: Json) -> object:
    return {}


@handles("query-migrate-capabilities")
def _query_migrate_capabilities(control: Control, arguments: Json) -> object:
    return []
