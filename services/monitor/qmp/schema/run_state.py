"""Running, stopping, ending (QEMU, qapi/run-state.json, misc.json)."""

from __future__ import annotations

from vmesh_services.monitor.qmp.types import BOOL, INT, STR, Command, Enum, Event, Member, Module, Struct, optional

_RUN_STATE = Enum(
    "RunState",
    (
        "debug", "inmigrate", "internal-error", "io-error", "paused", "postmigrate", "prelaunch", "finish-migrate",
        "restore-vm", "running", "save-vm", "shutdown", "suspended", "watchdog", "guest-panicked", "colo",
    ),
)  # fmt: skip
_STATUS_INFO = Struct(
    "StatusInfo",
    (
        Member("running", BOOL),
        Member("singlestep", BOOL, "always false"),
        Member("status", _RUN_STATE, "prelaunch until the harts first run; shutdown where set-action says pause"),
    ),
)
_SHUTDOWN_CAUSE = Enum(
    "ShutdownCause",
    (
        "none", "host-error", "host-qmp-quit", "host-qmp-system-reset", "host-signal", "host-ui", "guest-shutdown",
        "guest-reset", "guest-panic", "subsystem-reset", "snapshot-load",
    ),
)  # fmt: skip
_CAUSE = Struct(
    "ShutdownEvent", (Member("guest", BOOL, "whether the guest caused it"), Member("reason", _SHUTDOWN_CAUSE))
)

MODULE = Module(
    "Running, stopping, ending",
    commands=(
        Command("query-status", "Whether the machine runs.", None, _STATUS_INFO),
        Command("stop", "Pause the machine: the harts stop and the bus is drained. Again is no error."),
        Command("cont", "Go on. Where the guest has powered off, a system_reset comes first."),
        Command("system_reset", "Back to the state after power-on. A paused machine stays paused."),
        Command(
            "system_powerdown",
            "Press the power button. QEMU's RISC-V `virt` board has none, so, as there, POWERDOWN is sent to "
            "clients and the guest does not learn of it.",
        ),
        Command(
            "set-action",
            "What follows when the guest resets or powers off. `panic` and `watchdog` change nothing: it has neither.",
            Struct(
                "SetActionArguments",
                (
                    optional("reboot", Enum("RebootAction", ("reset", "shutdown"))),
                    optional("shutdown", Enum("ShutdownAction", ("poweroff", "pause"))),
                    optional("panic", Enum("PanicAction", ("pause", "shutdown", "exit-failure", "none"))),
                    optional(
                        "watchdog",
                        Enum(
                            "WatchdogAction",
                            ("reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"),
                        ),
                    ),
                ),
            ),
        ),
    ),
    events=(
        Event("SHUTDOWN", "The machine ends, or with set-action shutdown=pause stays there paused.", _CAUSE),
        Event("POWERDOWN", "system_powerdown was asked for."),
        Event("RESET", "The machine was reset.", Struct("ResetEvent", _CAUSE.members)),
        Event("STOP", "The machine was paused."),
        Event("RESUME", "The machine goes on."),
        Event(
            "__org.vmesh_WARNING",
            "Something is amiss though the machine goes on, such as a file in its directory that cannot be written; or "
            "it is no longer. `vmesh status` shows what is.",
            Struct(
                "WarningEvent",
                (Member("about", STR), Member("text", STR), Member("active", BOOL, "false: it is mended")),
            ),
        ),
        Event(
            "__org.vmesh_SERVICE_FAILED",
            "A device does not come back, or a hart cannot go on: the machine stops (the status is io-error or "
            "internal-error), and `cont` tries again; or it ends, as -action device-failure says. It does so, too, "
            "when guest memory is lost, and `cont` is refused then.",
            Struct(
                "ServiceFailedEvent",
                (
                    Member("service", STR),
                    Member("reason", STR, "one line"),
                    Member("action", Enum("ServiceFailedAction", ("stop", "exit"))),
                ),
            ),
        ),
        Event(
            "__org.vmesh_SERVICE_RESTARTED",
            "A device's process had ended, and its next one has taken over.",
            Struct(
                "ServiceRestartedEvent",
                (
                    Member("service", STR),
                    Member("epoch", INT, "the count of its lives"),
                    Member("reason", STR, "how the former one ended"),
                ),
            ),
        ),
    ),
)
