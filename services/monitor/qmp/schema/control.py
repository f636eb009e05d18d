"""The protocol itself: negotiation, versions, introspection, HMP (QEMU, qapi/control.json, misc.json)."""

from __future__ import annotations

from vmesh_services.monitor.qmp.types import INT, STR, Array, Command, Enum, Member, Module, Struct, optional

_QMP_CAPABILITY = Enum("QMPCapability", ("oob",))
_VERSION_TRIPLE = Struct("VersionTriple", (Member("major", INT), Member("minor", INT), Member("micro", INT)))
_VERSION_INFO = Struct(
    "VersionInfo",
    (Member("qemu", _VERSION_TRIPLE, "the QEMU whose commands these are"), Member("package", STR, "vmesh's version")),
)
_COMMAND_INFO = Struct("CommandInfo", (Member("name", STR),))
_EVENT_INFO = Struct("EventInfo", (Member("name", STR),))
_SCHEMA_INFO = Struct("SchemaInfo", (Member("name", STR), Member("meta-type", STR)), open=True)

MODULE = Module(
    "The protocol",
    commands=(
        Command(
            "qmp_capabilities",
            "The first command of a session. No capability is offered, so none can be enabled.",
            Struct("QmpCapabilitiesArguments", (optional("enable", Array(_QMP_CAPABILITY)),)),
        ),
        Command("query-version", "The version of QEMU whose words are spoken, and vmesh's.", None, _VERSION_INFO),
        Command("query-commands", "The names of all commands.", None, Array(_COMMAND_INFO)),
        Command("query-events", "The names of all events.", None, Array(_EVENT_INFO)),
        Command("query-qmp-schema", "This schema, for programs.", None, Array(_SCHEMA_INFO)),
        Command("quit", "End the machine in order. The answer comes before it has ended."),
        Command(
            "human-monitor-command",
            "Carry out a line of HMP; gives the text that it prints.",
            Struct(
                "HumanMonitorCommandArguments",
                (Member("command-line", STR), optional("cpu-index", INT, "the hart that `x` and the like look from")),
            ),
            STR,
        ),
        Command(
            "__org.vmesh_complete",
            "What may follow a begun line of HMP: words that complete its last one.",
            Struct("CompleteArguments", (Member("line", STR),)),
            Array(STR),
        ),
    ),
)
