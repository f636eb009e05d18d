"""Migration and snapshots (QEMU, qapi/migration.json, job.json)."""

from __future__ import annotations

from vmesh_services.monitor.qmp.types import (
    BOOL,
    INT,
    SIZE,
    STR,
    UINT8,
    UINT64,
    Array,
    Command,
    Enum,
    Event,
    Member,
    Module,
    Struct,
    optional,
)

_STATUS = Enum(
    "MigrationStatus",
    (
        "none", "setup", "cancelling", "cancelled", "active", "postcopy-active", "postcopy-paused", "postcopy-recover",
        "completed", "failed", "colo", "pre-switchover", "device", "wait-unplug",
    ),
)  # fmt: skip
_RAM = Struct(
    "MigrationStats",
    (
        Member("transferred", INT), Member("remaining", INT), Member("total", INT), Member("duplicate", INT),
        Member("normal", INT), Member("normal-bytes", INT), Member("dirty-pages-rate", INT),
        Member("mbps", INT), Member("dirty-sync-count", INT), Member("postcopy-requests", INT),
        Member("page-size", INT),
    ),
)  # fmt: skip
_INFO = Struct(
    "MigrationInfo",
    (
        optional("status", _STATUS),
        optional("ram", _RAM),
        optional("total-time", INT, "ms"),
        optional("downtime", INT, "ms"),
        optional("expected-downtime", INT, "ms"),
        optional("setup-time", INT, "ms"),
        optional("error-desc", STR),
    ),
    open=True,
)
_CAPABILITY = Enum(
    "MigrationCapability",
    ("xbzrle", "auto-converge", "postcopy-ram", "events", "pause-before-switchover", "multifd", "return-path",
     "postcopy-preempt"),
)  # fmt: skip
_CAPABILITY_STATUS = Struct("MigrationCapabilityStatus", (Member("capability", _CAPABILITY), Member("state", BOOL)))
_MODE = Enum("MigMode", ("normal", "cpr-transfer"))
_PARAMETERS = Struct(
    "MigrationParameters",
    (
        optional("max-bandwidth", SIZE, "bytes per second"),
        optional("downtime-limit", UINT64, "ms"),
        optional("throttle-trigger-threshold", UINT8, "percent"),
        optional("cpu-throttle-initial", UINT8, "percent"),
        optional("cpu-throttle-increment", UINT8, "percent"),
        optional("max-cpu-throttle", UINT8, "percent"),
        optional("max-postcopy-bandwidth", SIZE, "bytes per second"),
        optional("max-package-bytes", SIZE, "ours: of all devices' state in a post-copy"),
        optional("zstd-level", UINT8, "ours: 0 for pages that are not compressed"),
        optional("mode", _MODE, "cpr-transfer: to one with -incoming handover:NAME, which has this one's RAM"),
    ),
)
_SNAPSHOT = (
    Member("job-id", STR),
    Member("tag", STR, "the snapshot's name"),
    Member("vmstate", STR, "QEMU's node for the state; here it is a file of its own, and this is not looked at"),
    Member("devices", Array(STR), "QEMU's nodes of the disks; not looked at: disks are not in the snapshot"),
)
_JOB_STATUS = Enum(
    "JobStatus",
    ("undefined", "created", "running", "paused", "ready", "standby", "waiting", "pending", "aborting", "concluded",
     "null"),
)  # fmt: skip

_JOB_INFO = Struct(
    "JobInfo",
    (
        Member("id", STR),
        Member("type", STR),
        Member("status", _JOB_STATUS),
        Member("current-progress", INT),
        Member("total-progress", INT),
        optional("error", STR),
    ),
)

MODULE = Module(
    "Migration and snapshots",
    commands=(
        Command("query-migrate", "How the last migration goes; {} before there was one.", None, _INFO),
        Command(
            "migrate",
            "Send this machine to another one, which waits with `-incoming`.",
            Struct(
                "MigrateArguments",
                (Member("uri", STR), optional("detach", BOOL), optional("resume", BOOL, "of a paused post-copy")),
            ),
        ),
        Command(
            "migrate-incoming",
            "Where a machine that waits with `-incoming defer` is to listen.",
            Struct("MigrateIncomingArguments", (Member("uri", STR),)),
        ),
        Command("migrate_cancel", "Give the migration up; the machine goes on here."),
        Command(
            "migrate-continue",
            "Go on with a migration that waits in a state.",
            Struct("MigrateContinueArguments", (Member("state", _STATUS),)),
        ),
        Command("migrate-start-postcopy", "Go on at the destination now; pages follow."),
        Command("migrate-pause", "Cut a post-copy migration; it can be resumed."),
        Command(
            "migrate-recover",
            "At the destination: where a paused post-copy migration may come back.",
            Struct("MigrateRecoverArguments", (Member("uri", STR),)),
        ),
        Command(
            "migrate-set-capabilities",
            "Switch capabilities.",
            Struct("MigrateSetCapabilitiesArguments", (Member("capabilities", Array(_CAPABILITY_STATUS)),)),
        ),
        Command("query-migrate-capabilities", "The capabilities.", None, Array(_CAPABILITY_STATUS)),
        Command("migrate-set-parameters", "Set parameters.", Struct("MigrateSetParameters", _PARAMETERS.members)),
        Command("query-migrate-parameters", "The parameters.", None, _PARAMETERS),
        Command(
            "snapshot-save",
            "Keep the machine, but not its disks, in a file (docs/cli.md).",
            Struct("SnapshotSaveArguments", _SNAPSHOT),
        ),
        Command("snapshot-load", "Go back to a snapshot.", Struct("SnapshotLoadArguments", _SNAPSHOT)),
        Command(
            "snapshot-delete",
            "Forget a snapshot.",
            Struct("SnapshotDeleteArguments", tuple(each for each in _SNAPSHOT if each.name != "vmstate")),
        ),
        Command("query-jobs", "The snapshot commands that were begun.", None, Array(_JOB_INFO)),
        Command("job-dismiss", "Forget a job that is concluded.", Struct("JobDismissArguments", (Member("id", STR),))),
    ),
    events=(
        Event(
            "MIGRATION",
            "A migration has another status. Sent where the capability `events` is on.",
            Struct("MigrationEvent", (Member("status", _STATUS),)),
        ),
        Event(
            "JOB_STATUS_CHANGE",
            "A job (snapshot-save and the like) has another status.",
            Struct("JobStatusChangeEvent", (Member("id", STR), Member("status", _JOB_STATUS))),
        ),
    ),
)
