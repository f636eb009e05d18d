"""The protocol itself."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

from vmesh_services.monitor.control import Control
from vmesh_services.monitor.qmp.check import Json
from vmesh_services.monitor.qmp.errors import CommandNotFound
from vmesh_services.monitor.qmp.handlers.registry import COMMANDS, handles
from vmesh_services.monitor.qmp.introspect import schema_info
from vmesh_services.monitor.qmp.schema import SCHEMA

_QEMU = {"major": 7, "minor": 2, "micro": 0}  # whose commands the schema describes


@cache
def version_info() -> Json:
    """VersionInfo, in the greeting too."""
    return {"qemu": _QEMU, "package": f"vmesh {version('vmesh')}"}


@handles("qmp_capabilities")
def _qmp_capabilities(control: Control, arguments: Json) -> object:
    raise CommandNotFound("Capabilities negotiation is already complete, command ignored")


@handles("query-version")
def _query_version(control: Control, arguments: Json) -> object:
    return version_info()


@handles("query-commands")
def _query_commands(control: Control, arguments: Json) -> object:
    return [{"name": name} for name in COMMANDS]


@handles("query-events")
def _query_events(control: Control, arguments: Json) -> object:
    return [{"name": name} for name in SCHEMA.events]


@cache
def _schema_info() -> list[Json]:
    return schema_info(SCHEMA)


@handles("query-qmp-schema")
def _query_qmp_schema(control: Control, arguments: Json) -> object:
    return _schema_info()


@handles("quit")
def _quit(control: Control, arguments: Json) -> object:
    # In the next turn of the loop, so that the answer is sent before.
    control.supervisor.call(lambda: control.supervisor.end(0))
    return {}
